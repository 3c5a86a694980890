"""Which groups a view serves as live. It follows the ledger's slots, but switches at a promotion's position.

A promotion is one transaction at position P: the demoted group had folded to P or less, the promoted one to P or more.
A view that learns of it holds the demoted group where it is (at most P, since it reads watermarks before slots),
applies the promoted one's feed up to P, which the ledger has, and only then serves it. So each replica goes from an old
state at or before P to a new one at or after P, whatever becomes of either fold meanwhile, and no position goes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamfold.core.context import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Who answers in this process; replaced as a whole, so one look at it never mixes versions."""

    live: frozenset[str] = frozenset()
    awaited: tuple[str, ...] = ()
    """Groups that are live in the ledger, but whose code this process lacks: it goes on with what it has."""
    policies: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The names of the policies of each live group."""

    def leaving(self, groups: Sequence[Group]) -> frozenset[str]:
        """Groups served here that are live no more in the ledger, while a promoted one is here to take over."""
        now = {group.name for group in groups if group.slot == "live"}
        arriving = {name for group in groups if group.name in now - self.live for name in group.names}
        return frozenset(old for old in self.live - now if self.policies[old] & arriving)

    def after(self, groups: Sequence[Group], opened: set[str], behind: set[str], rows: Mapping[str, str]) -> Serving:
        """Who is to answer now; equal to this one most of the time.

        Parameters
        ----------
        groups : those that this process has code for.
        opened : those with an open view.
        behind : those whose view has not reached the position of its promotion.
        rows : policy name → its live group, by the ledger's rows, with or without code here.
        """
        now = {group.name: group for group in groups if group.slot == "live"}
        ready = opened - behind if self.live else opened  # at first there is nothing to switch from
        taken = {name for name in now if name in self.live or name in ready}
        covered = {policy for name in taken for policy in now[name].names}
        kept = {old for old in self.live - set(now) if any(p in rows and p not in covered for p in self.policies[old])}
        here = {group.name for group in groups}
        return Serving(
            live=frozenset(taken | kept),
            awaited=tuple(sorted({group for group in rows.values() if group not in here})),
            policies={name: now[name].names for name in taken} | {name: self.policies[name] for name in kept},
        )
