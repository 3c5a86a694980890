"""``graph_walk`` finds what is a few steps away, forgets what leaves, and keeps its bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from streamfold.core import CandidateRequest, ConfigError
from streamfold.core.testing.folded import Folded
from streamfold.plugins import builtin
from streamfold.plugins.graph_walk import GraphWalk, GraphWalkConfig

Given = tuple[str, dict[str, Any]]


@pytest.fixture
def folded() -> Iterator[Callable[..., Folded]]:
    made: list[Folded] = []

    def make(events: Iterable[Given], **config: Any) -> Folded:
        def policy() -> GraphWalk:
            return GraphWalk(GraphWalkConfig(**config))

        made.append(Folded(policy, plugins=(builtin,)))
        return made[-1].send(events)

    yield make
    for one in made:
        one.close()


def like(user: str, *items: str, action: str = "click") -> list[Given]:
    return [("interaction.observed", {"user_id": user, "item_id": one, "action": action}) for one in items]


def item(item_id: str, *categories: str, **more: Any) -> Given:
    return "item.upserted", {"item_id": item_id, "categories": list(categories), **more}


def found(folded: Folded, *seeds: str | tuple[str, float], n: int = 100) -> dict[str, float]:
    weighted = [(one, 1.0) if isinstance(one, str) else one for one in seeds]
    return dict(folded.server.candidates(CandidateRequest(n=n, seeds=weighted)))


def edges(folded: Folded, source: str) -> dict[str, float]:
    nodes, weights = folded["graph"].targets(source)
    return dict(zip(nodes, weights.tolist(), strict=True))


def test_items_are_found_over_users_the_nearer_the_higher(folded: Any) -> None:
    walk = folded([*like("ann", "a", "b"), *like("bob", "b", "c"), *like("cyd", "c", "d"), *like("eve", "x", "y")])
    assert list(found(walk, "a")) == ["b", "c", "d"], "two, four and six steps away; x and y are not connected"
    assert list(found(walk, "a", n=2)) == ["b", "c"]
    assert walk.server.similar("a", 3) == list(found(walk, "a").items())


def test_scores_are_the_personalised_pagerank_of_the_graph(folded: Any) -> None:
    import networkx as nx

    walk = folded(
        [*like("ann", "a", "b"), *like("bob", "b", "c", "a"), item("c", "red"), item("new", "red")],
        epsilon=1e-9, damping=0.7, token_weight=2.0,
    )  # fmt: skip
    graph = nx.Graph([("ann", "a"), ("ann", "b"), ("bob", "b"), ("bob", "c"), ("bob", "a")], weight=1.0)
    graph.add_weighted_edges_from([("c", "red", 2.0), ("new", "red", 2.0)])
    exact = nx.pagerank(graph, alpha=0.7, personalization={"a": 1.0, "b": 0.5}, tol=1e-12)
    assert found(walk, "a", ("b", 0.5)) == pytest.approx({one: exact[one] for one in ("c", "new")}, abs=1e-6)


def test_what_nobody_has_met_is_found_by_what_it_is_told_by(folded: Any) -> None:
    walk = folded(
        [*like("ann", "a", "b"), item("b", "jazz"), item("new", "jazz"), item("other", "rock")], token_weight=0.5
    )
    assert list(found(walk, "a")) == ["b", "new"]
    walk.send([("item.patched", {"item_id": "new", "categories": ["rock"]})])
    assert list(found(walk, "a")) == ["b"]
    walk.send(
        [("item.patched", {"item_id": "new", "properties": {"label": "blue"}}), item("b", properties={"label": "blue"})]
    )
    assert edges(walk, "i:new") == {"t:rock": 0.5, "t:label=blue": 0.5}, "a patch leaves what it does not name"
    assert list(found(walk, "a")) == ["b", "new", "other"]


def test_only_what_is_liked_makes_an_edge_or_starts_a_walk(folded: Any) -> None:
    walk = folded([*like("ann", "a", "b"), *like("ann", "c", action="dislike"), *like("ann", "v", action="view")])
    assert edges(walk, "u:ann") == {"i:b": 1.0, "i:a": 1.0}
    assert found(walk, ("a", -0.5)) == {}
    assert found(walk) == {}
    assert found(walk, "never met") == {}
    assert list(found(walk, "never met", "a")) == ["b"]
    assert found(walk, ("a", 1.0), ("b", -0.5)) == {}, "what was disliked is given too, and not proposed"


def test_a_deleted_item_leaves_nothing(folded: Any) -> None:
    rest = [*like("ann", "a", "b"), item("a", "jazz"), *like("bob", "c")]
    gone = [item("x", "rock"), *like("ann", "x"), *like("bob", "x"), *like("solo", "x")]
    walk = folded([*gone, *rest, ("item.deleted", {"item_id": "x"})])
    assert walk["graph"].fingerprint() == folded(rest)["graph"].fingerprint()
    assert not {"i:x", "t:rock", "u:solo"} & set(walk["graph"].nodes())


@pytest.mark.parametrize("subject", ["user", "item"])
def test_what_is_erased_might_never_have_come(folded: Any, subject: str) -> None:
    rest = [*like("ann", "a", "b"), item("a", "jazz"), *like("bob", "b", "c")]
    gone = like("x", "a", "d") if subject == "user" else [item("x", "rock"), *like("ann", "x"), *like("bob", "x")]
    config = {"per_user": 2}  # the erased item had pushed another out, which comes back
    walk = folded([*rest[:3], *gone, *rest[3:]], **config)
    walk.send([(f"{subject}.erased", {f"{subject}_id": "x"})])
    walk.world.erase()
    expected = folded(rest, **config)
    assert walk["graph"].fingerprint() == expected["graph"].fingerprint()
    assert found(walk, "a") == found(expected, "a")


def test_users_items_and_the_whole_are_bounded(folded: Any) -> None:
    walk = folded([*like("ann", "a", "b", "c", "a", "d"), item("a", *"pqrs")], per_user=3, per_item=2)
    assert list(edges(walk, "u:ann")) == ["i:d", "i:a", "i:c"], "the newest, each once"
    assert list(edges(walk, "i:a")) == ["t:p", "t:q"]
    small = folded([one for n in range(50) for one in like(f"u{n}", f"i{n}", "hub")], max_bytes=2_000)
    assert "u:u49" in small["graph"]
    assert "u:u0" not in small["graph"]
    assert small["graph"].state_bytes() < 3_000


def test_a_larger_epsilon_goes_less_far_and_a_hub_leads_nowhere(folded: Any) -> None:
    rows = [*like("ann", "a", "b"), *like("bob", "b", "c"), *like("cyd", "c", "d"), item("d", "all")]
    rows += [item(f"k{n}", "all") for n in range(300)]
    assert list(found(folded(rows, damping=0.5, epsilon=0.05), "a")) == ["b"]
    assert list(found(folded(rows), "a")) == ["b", "c", "d"]
    assert len(found(folded(rows, epsilon=1e-8), "a", n=1000)) == 303


def test_what_many_have_met_is_proposed_where_the_walk_ends(folded: Any) -> None:
    crowd = [one for n in range(200) for one in like(f"u{n}", "hit", f"i{n}")]
    assert list(found(folded([*like("ann", "a", "hit"), *crowd], epsilon=1e-2), "a")) == ["hit"]


@pytest.mark.parametrize(
    ("config", "says"),
    [({"damping": 1.0}, "damping"), ({"epsilon": 0.0}, "epsilon"), ({"per_user": 0}, "per_user"),
     ({"token_weight": float("nan")}, "token_weight")],
)  # fmt: skip
def test_bad_settings_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GraphWalkConfig(**config)
