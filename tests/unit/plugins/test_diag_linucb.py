"""``diag_linucb`` proposes what is near a user's taste, less so what was passed over, and first what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamfold.core import CandidateRequest, ConfigError
from streamfold.core.testing.folded import Folded
from streamfold.plugins import builtin
from streamfold.plugins._directions import directions
from streamfold.plugins.diag_linucb import DiagLinucb, DiagLinucbConfig

JAZZ, ROCK = "jazz trumpet improvisation blue", "rock guitar amplifier loud"


@pytest.fixture
def folded() -> Iterator[Folded]:
    def make() -> DiagLinucb:
        return DiagLinucb(DiagLinucbConfig(clusters=16, width=8))

    made = Folded(make, plugins=(builtin,))
    yield made
    made.close()


def items(**titles: str) -> list[tuple[str, dict[str, Any]]]:
    return [("item.upserted", {"item_id": name, "title": title}) for name, title in titles.items()]


def act(user: str, item: str, action: str = "click") -> tuple[str, dict[str, Any]]:
    return ("interaction.observed", {"user_id": user, "item_id": item, "action": action})


def edges(folded: Folded, item: str) -> dict[int, Any]:
    slots = folded["places"].get(item).slots
    return {int(slot.partition("\x1f")[0]): folded["edges"].get(slot) for slot in slots}


def asked(folded: Folded, *seeds: str) -> dict[str, float]:
    request = CandidateRequest(n=100, seeds=[(one, 1.0) for one in seeds])
    return dict(folded.server.candidates(request))


def test_an_example_moves_the_edges_of_the_users_clusters_as_written(folded: Folded) -> None:
    folded.send([*items(seed=JAZZ, shown=JAZZ), act("u", "seed")])
    weights = folded.server._policy.weights([("seed", 1.0)], folded)
    assert sum(weights.values()) == pytest.approx(1.0)
    before = edges(folded, "shown")
    assert set(before) <= set(weights), "an equal text lies in the user's clusters"
    folded.send([act("u", "shown", "dislike"), act("v", "seed"), act("v", "shown")])
    for cluster, edge in edges(folded, "shown").items():
        w = weights[cluster]
        assert (edge.d, edge.b) == pytest.approx((1 + 2 * w * w, w))
    d = {cluster: edge.d for cluster, edge in edges(folded, "shown").items()}
    mean = sum(weights[c] * weights[c] / d[c] for c in d)
    spread = sum(weights[c] ** 2 / d[c] for c in d)
    assert asked(folded, "seed")["shown"] == pytest.approx(mean + 0.5 * spread**0.5)


def test_what_was_passed_over_falls_behind_what_is_new(folded: Folded) -> None:
    folded.send([*items(seed=JAZZ, old=JAZZ, new=JAZZ), act("u", "seed")])
    assert asked(folded, "seed")["old"] == asked(folded, "seed")["new"]
    folded.send([act("u", "old", "dislike")])
    found = asked(folded, "seed")
    assert found["old"] < found["new"]
    assert "seed" not in found
    folded.send([act("w", "seed"), act("w", "new")])
    assert max(asked(folded, "seed").items(), key=lambda one: one[1])[0] == "new"


def test_nothing_is_proposed_to_whom_nothing_is_known_of(folded: Folded) -> None:
    folded.send(items(seed=JAZZ, other=ROCK))
    assert asked(folded) == {}
    assert asked(folded, "never met") == {}


def test_an_item_keeps_what_it_knows_while_it_stays_and_leaves_nothing_when_it_goes(folded: Folded) -> None:
    folded.send([*items(seed=JAZZ, shown=JAZZ), act("u", "seed"), act("u", "shown")])
    learned = edges(folded, "shown")
    folded.send(items(shown=JAZZ))
    assert edges(folded, "shown") == learned
    folded.send(items(shown=ROCK))
    assert all((one.d, one.b) == (1.0, 0.0) for c, one in edges(folded, "shown").items() if c not in learned)
    folded.send([("item.deleted", {"item_id": "shown"})])
    assert folded["places"].get("shown") is None
    assert "shown" not in {edge.item for _, edge in folded["edges"].items()}


def test_a_cluster_keeps_its_newest_items(folded: Folded) -> None:
    folded.send([*items(**{f"i{n}": JAZZ for n in range(20)}), *items(i0=JAZZ)])
    held = {edge.item for _, edge in folded["edges"].items()}
    assert held == {"i0", *(f"i{n}" for n in range(13, 20))}
    folded.send([("item.deleted", {"item_id": "i1"})])  # it lost its places before: another's stay
    assert {edge.item for _, edge in folded["edges"].items()} == held


def test_clusters_are_unit_directions_that_the_seed_alone_decides() -> None:
    found = directions(16, 0, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0)
    assert np.abs(found @ found.T - np.eye(16)).max() < 0.25
    assert found[0, :8].tolist() == directions(16, 0, 384)[0, :8].tolist()
    assert (found != directions(16, 1, 384)).any()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most clusters"):
        DiagLinucbConfig(clusters=2)
    with pytest.raises(ConfigError, match="temperature"):
        DiagLinucbConfig(temperature=0.0)
