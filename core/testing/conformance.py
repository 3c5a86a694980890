"""Run the checks: all on one policy (:func:`check_policy`), as a table, or one pytest test per check."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from streamfold.core.testing.checks import CHECKS, FIRST
from streamfold.core.testing.lab import Case, CheckFailed, Lab, Make


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one check found; ``message`` tells the author what to do."""

    name: str
    state: Literal["passed", "failed", "not run"]
    message: str = ""
    seconds: float = 0.0


def case_of(make: Make | Case, **options: Any) -> Case:
    """Return the case for a policy class, a function that makes a policy, or a case that is one already."""
    return make if isinstance(make, Case) else Case(make=make, **options)


def run_check(name: str, make: Make | Case) -> None:
    """Run one check by its name; raises ``CheckFailed``."""
    with Lab(case_of(make)) as lab:
        _run(name, lab)


class _LastLab:
    """The lab of the case whose checks pytest runs one after the other: its stream and its ledger are made once."""

    def __init__(self) -> None:
        self._case: Case | None = None
        self._lab: Lab | None = None

    def run(self, name: str, case: Case) -> None:
        if self._lab is None or self._case is not case:
            self.close()
            self._case, self._lab = case, Lab(case)
            atexit.unregister(self.close)  # registered after the lab's folder was, it runs before that is cleared
            atexit.register(self.close)
        _run(name, self._lab)

    def close(self) -> None:
        lab, self._case, self._lab = self._lab, None, None
        if lab is not None:
            lab.close()


def run_checks(
    make: Make | Case,
    *,
    only: Sequence[str] = (),
    on_result: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> list[Result]:
    """Run all checks (or ``only`` some) on a policy; further options are those of :class:`Case`."""
    results: list[Result] = []
    blocked = ""
    try:
        lab = Lab(case_of(make, **options))
    except Exception as error:
        failed = Result(name="spec", state="failed", message=f"the policy cannot be made: {error!r}")
        on_result(failed)
        rest = [Result(name=name, state="not run", message="spec failed") for name in CHECKS if name != "spec"]
        return [failed, *rest]
    with lab:
        for name in CHECKS:
            if only and name not in only:
                continue
            if blocked:
                result = Result(name=name, state="not run", message=f"{blocked} failed")
            else:
                result = _result(name, lab)
                if result.state == "failed" and name in FIRST:
                    blocked = name
            results.append(result)
            on_result(result)
    return results


def check_policy(make: Make | Case, **options: Any) -> None:
    """Check that a policy keeps the contract.

    Parameters
    ----------
    make : the policy class, a function without arguments that makes a policy, or a :class:`Case`.
    options : those of :class:`Case` (``plugins``, ``policies``, ``backends``, ``events``).

    Raises
    ------
    CheckFailed : naming every check that failed, with what was seen and what to do.
    """
    case = case_of(make, **options)
    failed = [result for result in run_checks(case) if result.state == "failed"]
    if failed:
        lines = [f"{result.name}: {result.message}" for result in failed]
        raise CheckFailed(f"{case.name} fails {len(failed)} of {len(CHECKS)} checks:\n- " + "\n- ".join(lines))


def parametrize_with_checks(policies: Iterable[Make | Case], **options: Any) -> Any:
    """Make one pytest test of each policy and check; the test gets a function ``check`` to call.

    >>> @parametrize_with_checks([Dwell])  # doctest: +SKIP
    ... def test_conformance(check):
    ...     check()
    """
    import pytest

    cases = [case_of(make, **options) for make in policies]
    last = _LastLab()
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(lambda name=name, case=case: last.run(name, case), id=f"{case.name}-{name}")
            for case in cases
            for name in CHECKS
        ],
    )


def _run(name: str, lab: Lab) -> None:
    try:
        CHECKS[name](lab)
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"the check could not be run: {type(error).__name__}: {error}") from error
    finally:
        lab.clear()


def _result(name: str, lab: Lab) -> Result:
    started = time.perf_counter()
    try:
        _run(name, lab)
    except CheckFailed as error:
        return Result(name=name, state="failed", message=str(error), seconds=time.perf_counter() - started)
    return Result(name=name, state="passed", seconds=time.perf_counter() - started)
