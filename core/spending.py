"""What a workspace has spent on a backend, counted in the ledger, so that restarts and replicas share one budget."""

from __future__ import annotations

from datetime import timedelta

from streamfold.core.clock import US, Clock
from streamfold.core.errors import BackendUnavailable
from streamfold.core.events.fields import from_us
from streamfold.core.ledger.abc import Ledger
from streamfold.core.policy import Budget, Usage

_PAUSE_S = 600.0
"""How long to wait when a total is used up: until somebody raises it."""


class Spending:
    """The account of one backend kind in one workspace.

    Calls that run at the same time are counted when they end, so a budget may be overdrawn by as many as run at once.
    """

    def __init__(self, ledger: Ledger, clock: Clock, workspace: str, kind: str, budget: Budget) -> None:
        self._ledger = ledger
        self._clock = clock
        self._workspace = workspace
        self._kind = kind
        self._budget = budget

    def check(self) -> None:
        """Raise ``BackendUnavailable`` when the budget is used up."""
        budget = self._budget
        limits = {
            "tokens": (budget.tokens_per_day, budget.tokens_total),
            "microusd": (round(budget.usd_per_day * 1e6), round(budget.usd_total * 1e6)),
        }
        if not any(per_day or total for per_day, total in limits.values()):
            return
        day, left_s = self._day()
        found = self._ledger.counted(self._workspace, [f"{self._name(u)}{d}" for u in limits for d in ("", day)])
        for unit, (per_day, total) in limits.items():
            if total and found[self._name(unit)] >= total:
                detail = f"the {self._kind}'s total budget of {total:,} {unit} is used up: raise it in the settings"
                raise BackendUnavailable(detail, retry_after_s=_PAUSE_S)
            if per_day and found[self._name(unit) + day] >= per_day:
                detail = f"the {self._kind}'s budget of {per_day:,} {unit} a day is used up"
                raise BackendUnavailable(detail, retry_after_s=left_s)

    def spend(self, usage: Usage) -> None:
        """Count what a call used."""
        price = self._budget
        cost = usage.tokens_in * price.usd_per_million_in + usage.tokens_out * price.usd_per_million_out
        day, _ = self._day()
        added = {}
        for unit, n in (("tokens", usage.tokens_in + usage.tokens_out), ("microusd", round(cost))):
            if n:
                added[self._name(unit)] = added[self._name(unit) + day] = n
        if added:
            self._ledger.count(self._workspace, added)

    def spent(self) -> dict[str, int]:
        """Tokens and micro-dollars, in all and today."""
        day, _ = self._day()
        names = {"tokens": "tokens", "tokens_today": "tokens" + day, "microusd": "microusd"}
        found = self._ledger.counted(self._workspace, [self._name(name) for name in names.values()])
        return {shown: found[self._name(name)] for shown, name in names.items()}

    def _name(self, unit: str) -> str:
        return f"spent:{self._kind}:{unit}"

    def _day(self) -> tuple[str, float]:
        """The day, as a suffix, and how many seconds it has left."""
        now = from_us(self._clock.now_us())
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return f":{now:%Y-%m-%d}", (midnight - now) / timedelta(microseconds=1) / US
