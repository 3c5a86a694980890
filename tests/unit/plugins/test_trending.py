"""``trending`` counts with decay, in any order, within its bound."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import CandidateRequest, ConfigError, NeedsRebuild
from streamfold.plugins.trending import Trending, TrendingConfig

DAY_US = 86_400_000_000
T0 = 1_700_000_000_000_000


def seen(make_event: Any, seq: int, item: str, at_us: int = T0, action: str = "view", **more: Any) -> Any:
    return make_event(seq, "interaction.observed", at_us, user_id="u", item_id=item, action=action, **more)


def listed(bench: Any, n: int = 10, **more: Any) -> dict[str, float]:
    return dict(bench.server.candidates(CandidateRequest(n=n, **more)))


def test_a_count_halves_in_a_half_life(bench: Any, make_event: Any) -> None:
    trending = bench(Trending())
    trending.send(seen(make_event, 1, "a"), seen(make_event, 2, "a"), seen(make_event, 3, "b", T0 + DAY_US))
    found = listed(trending, at_us=T0 + DAY_US)
    assert found == pytest.approx({"a": 1.0, "b": 1.0})
    assert listed(trending, at_us=T0 + 3 * DAY_US) == pytest.approx({"a": 0.25, "b": 0.25})


def test_actions_have_weights_and_a_dislike_has_none(bench: Any, make_event: Any) -> None:
    trending = bench(Trending())
    trending.send(
        seen(make_event, 1, "a", action="like"),
        seen(make_event, 2, "b", action="dislike"),
        seen(make_event, 3, "c", action="rating", value=4.0),
    )
    assert listed(trending, at_us=T0) == pytest.approx({"a": 2.0, "c": 1.0})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400 * DAY_US)), min_size=1, max_size=30))
def test_order_does_not_matter_and_the_sum_is_the_definition(
    bench: Any, make_event: Any, rows: list[tuple[str, int]]
) -> None:
    now = T0 + 400 * DAY_US
    expected: dict[str, float] = {}
    for item, at in rows:
        expected[item] = expected.get(item, 0.0) + 2.0 ** (-(400 * DAY_US - at) / (30 * DAY_US))
    shuffled = random.Random(0).sample(rows, len(rows))
    for order in (rows, shuffled):
        trending = bench(Trending(TrendingConfig(half_lives_s=(30 * 86_400.0,))))
        trending.send(*[seen(make_event, n, item, T0 + at) for n, (item, at) in enumerate(order)])
        assert listed(trending, at_us=now) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("bound", [1000, 5])
def test_a_batch_equals_the_loop_bit_for_bit(bench: Any, make_event: Any, bound: int) -> None:
    config = TrendingConfig(half_lives_s=(3600.0, 86_400.0), max_items=bound)
    one, two = bench(Trending(config)), bench(Trending(config))
    rng = random.Random(1)
    events = [seen(make_event, n, f"i{rng.randrange(20)}", T0 + rng.randrange(DAY_US)) for n in range(300)]
    one.send(*events)
    two.fold(lambda: two.policy.fold_batch([(event, None) for event in events], two.stores))
    two.commit()
    assert one.fingerprint() == two.fingerprint()
    assert len(one.view["score_0"]) <= bound


def test_a_category_lists_its_items_with_all_their_counts(bench: Any, make_event: Any) -> None:
    trending = bench(Trending())
    trending.send(*[seen(make_event, n, f"i{n % 50}") for n in range(500)])
    trending.send(make_event(600, "item.upserted", T0, item_id="i7", categories=["rare", "x"]))
    assert listed(trending, n=2, category="rare", at_us=T0) == pytest.approx({"i7": 10.0})
    trending.send(make_event(601, "item.patched", T0, item_id="i7", title="t"))
    assert listed(trending, category="x", at_us=T0) == pytest.approx({"i7": 10.0})
    trending.send(make_event(602, "item.patched", T0, item_id="i7", categories=None))
    assert listed(trending, category="x", at_us=T0) == {}


def test_unavailable_expired_and_deleted_items_are_not_listed(bench: Any, make_event: Any) -> None:
    trending = bench(Trending())
    trending.send(*[seen(make_event, n, item) for n, item in enumerate("abcd")])
    trending.send(
        make_event(10, "item.upserted", T0, item_id="a", available=False),
        make_event(11, "item.upserted", T0, item_id="b", expires_at="2023-11-14T22:13:20Z"),
        make_event(12, "item.deleted", T0, item_id="c"),
    )
    assert list(listed(trending, at_us=T0 + 1)) == ["d"]
    assert "c" not in trending.view["score_0"]


def test_an_item_is_forgotten_exactly_and_a_user_by_a_rebuild(bench: Any, make_event: Any) -> None:
    one, two = bench(Trending()), bench(Trending())
    a, b = seen(make_event, 1, "a"), seen(make_event, 2, "b")
    one.send(a, b)
    two.send(b)
    one.forget("item", "a", a)
    assert one.fingerprint() == two.fingerprint()
    with pytest.raises(NeedsRebuild):
        one.forget("user", "u", b)
    one.forget("user", "stranger")


def test_only_configured_half_lives_are_served(bench: Any) -> None:
    trending = bench(Trending(TrendingConfig(half_lives_s=(60.0, 3600.0))))
    with pytest.raises(ValueError, match="configured: 60, 3600"):
        trending.server.candidates(CandidateRequest(n=1, half_life_s=61.0))


def test_without_a_time_of_request_scores_are_relative_to_the_best(bench: Any, make_event: Any) -> None:
    trending = bench(Trending())
    trending.send(seen(make_event, 1, "a"), seen(make_event, 2, "a"), seen(make_event, 3, "b"))
    assert listed(trending) == pytest.approx({"a": 1.0, "b": 0.5})


@pytest.mark.parametrize(
    "bad", [{"half_lives_s": ()}, {"half_lives_s": (0.0,)}, {"max_items": 0}, {"weights": {"view": -1.0}}]
)
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="trending"):
        TrendingConfig(**bad)
    assert math.isfinite(TrendingConfig().half_lives_s[0])
