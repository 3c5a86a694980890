"""The checks of the conformance kit, in the order in which they run.

- :mod:`~streamfold.core.testing.checks.spec`: the declaration, and that ordinary events reach the stores
- :mod:`~streamfold.core.testing.checks.determinism`: clock, random state, hash seed, order of maps, prepare
- :mod:`~streamfold.core.testing.checks.replay`: resume, redelivery, batches, compaction, checkpoints, failures half-way
- :mod:`~streamfold.core.testing.checks.serving`: answering writes nothing and grows nothing
- :mod:`~streamfold.core.testing.checks.bounds`: bounds under endless new ids, flat cost
- :mod:`~streamfold.core.testing.checks.erasure`: ``forget``
- :mod:`~streamfold.core.testing.checks.bad_events`: only ``EventError`` escapes

A check takes a :class:`~streamfold.core.testing.lab.Lab` and raises ``CheckFailed``; its docstring is what it checks.
"""

from __future__ import annotations

from collections.abc import Callable

from streamfold.core.testing.checks.bad_events import check_bad_events
from streamfold.core.testing.checks.bounds import check_bounds, check_cost
from streamfold.core.testing.checks.determinism import (
    check_clock,
    check_dict_order,
    check_hash_seed,
    check_prepare,
    check_random_state,
    check_repeatable,
)
from streamfold.core.testing.checks.erasure import check_forget
from streamfold.core.testing.checks.replay import (
    check_batch,
    check_checkpoint,
    check_compacted,
    check_half_way,
    check_redelivery,
    check_resume,
)
from streamfold.core.testing.checks.serving import check_reading_grows_nothing, check_serve_writes_nothing
from streamfold.core.testing.checks.spec import check_folds, check_spec
from streamfold.core.testing.lab import Lab

Check = Callable[[Lab], None]

FIRST = ("spec", "folds", "repeatable", "clock", "random_state", "hash_seed")
"""When one of these fails, the checks after it are not run: they compare folds, and would say nothing."""

CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_spec,
        check_folds,
        check_repeatable,
        check_clock,
        check_random_state,
        check_hash_seed,
        check_dict_order,
        check_prepare,
        check_resume,
        check_redelivery,
        check_batch,
        check_compacted,
        check_checkpoint,
        check_half_way,
        check_serve_writes_nothing,
        check_reading_grows_nothing,
        check_bounds,
        check_cost,
        check_forget,
        check_bad_events,
    )
}

__all__ = ["CHECKS", "FIRST", "Check"]
