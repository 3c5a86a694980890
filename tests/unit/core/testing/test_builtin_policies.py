"""What we ship passes all checks of the kit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamfold.core import Policy
from streamfold.core.testing import parametrize_with_checks
from streamfold.core.testing.lab import Case
from streamfold.plugins import builtin

QUICK = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
SMALL: dict[str, dict[str, Any]] = {
    "cooccurrence": {"max_items": 256},
    "count_stack": {"ids": 256, "crosses": 256},
    "deepfm": {"rows": 256},
    "factorization": {"rows": 256},
    "implicit_ftrl": {"rows": 256},
    "gradient_head": {"max_classes": 512, "dim": 256, "replay": 8, "replayed": 8},
    "head_quality": {"ring": 8},
    "novelty": {"dim": 4, "first": 2, "max_components": 2},
    "quality": {"ranker": "count_stack", "ring": 256, "rank_budget": 50.0, "max_rankings": 4},
    "residual_table": {"base": "count_stack", "rows": 256},
    "reloop2_lsh": {"base": "count_stack", "bits": 6},
    "reloop2_topk": {"base": "count_stack", "samples": 64},
}
"""Configurations of policies whose default arrays are large: the checks copy and compare them many times."""


LABELLED = tuple(
    ("label.observed", {"head": "topic", "target": {"features": {"x": x, "y": 1.0}}, "label": "a" if x > 0 else "b"})
    for x in (1.0, -1.0, 2.0, -2.0)
)
EVENTS: dict[str, tuple[Any, ...]] = {
    "drift": tuple(
        event
        for n in range(8)
        for event in (
            (
                "exposure.recorded",
                {
                    "exposure_id": f"exposure-shown-{n}",
                    "kind": "classify",
                    "items": [{"label": "a", "rank": 1}],
                    "context": {"head": "topic"},
                },
            ),
            (
                "label.observed",
                {
                    "head": "topic",
                    "target": {"text": f"t{n}"},
                    "label": "ab"[n % 2],
                    "exposure_id": f"exposure-shown-{n // 2}",
                },
            ),
        )
    ),
    "head_ensemble": LABELLED,
    "head_quality": LABELLED,
}
"""What generated events seldom hit: labels of an answer that was given, of a class that is known."""


def small(kind: type[Policy]) -> Callable[[], Policy]:
    """Make a policy with few rows."""

    def make() -> Policy:
        return kind(kind.Config(**SMALL[kind.name]))

    make.__name__ = kind.name
    return make if kind.name in SMALL else kind


def case(kind: type[Policy]) -> Case:
    """A policy with few rows, as those are that it reads."""
    make = small(kind)
    reads = {name: SMALL[name] for name in make().reads if name in SMALL}
    return Case(make=make, plugins=(builtin,), backends=QUICK, policies=reads, events=EVENTS.get(kind.name, ()))


ELSEWHERE = {"head_arms"}
"""Its events name the group that is in a live A/B: ``tests/unit/plugins/test_head_arms.py``."""


@parametrize_with_checks([case(kind) for kind in builtin.register_policies() if kind.name not in ELSEWHERE])
def test_built_in_policies_pass(check: Callable[[], None]) -> None:
    check()
