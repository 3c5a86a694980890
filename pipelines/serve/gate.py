"""The gate, asked in a serving process: a candidate's scores against those of what is live, and what it costs.

Who promotes by hand, who looks, and a changed declaration that is to take over by itself get the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from streamfold.core.gate import GateLimits, judge
from streamfold.core.hooks import GateRule
from streamfold.core.quality import Measured, QualityReport, Scored, ScoredReport
from streamfold.core.settings import GateSettings
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.gate_costs import GateCosts

Served = tuple[GroupView, MemberView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the rules about scores and bytes say, and whom the rules about time are to compare."""

    rules: list[GateRule]
    candidate: GroupView
    live: Sequence[GroupView]
    """All that it would replace."""


class Gate:
    """Judges candidates for one serving process."""

    def __init__(self, settings: GateSettings) -> None:
        self.limits = GateLimits(**settings.model_dump())
        self._costs = GateCosts()

    def close(self) -> None:
        self._costs.close()

    def scores(self, view: WorkspaceView, group: str) -> Scores | None:
        """Judge a candidate by all scores that it and what is live measure under one name; None: there are none here.

        Of several the rules say which they are about.
        """
        with view.asking():
            mine = [one for one in reports(view) if one[0].group.name == group]
            pairs = [(one, live) for one in mine if (live := _live(view, one)) is not None]
            if not pairs:
                return None
            candidate = pairs[0][0][0]
            replaced = _replaced(view, candidate)
            with view.reading([candidate, *replaced]):
                taken = [(one.runtime.instance.name, _taken(one), _taken(other)) for (_, one), (_, other) in pairs]
                size, live_size = (sum(one.stores.state_bytes() for one in side) for side in ([candidate], replaced))
        rules: list[GateRule] = []
        for name, scored, live_scored in taken:
            found = judge(scored(), live_scored(), self.limits, candidate_bytes=size, live_bytes=live_size)
            if len(taken) > 1:
                found = [r if r.rule == "bytes" else replace(r, detail=f"{name}: {r.detail}") for r in found]
            rules += [rule for rule in found if rule not in rules]  # bytes are the groups', hence counted once
        return Scores(rules=rules, candidate=candidate, live=replaced)

    def costs(self, view: WorkspaceView, scores: Scores) -> Future[list[GateRule]]:
        """Time both, in a thread of its own: some tenths of a second, or what was found some seconds ago."""
        return self._costs.rules(view, scores.candidate, scores.live, self.limits)

    def rules(self, view: WorkspaceView, group: str) -> list[GateRule]:
        """What all rules say (blocks); none where there is nothing to compare."""
        scores = self.scores(view, group)
        return [] if scores is None else [*scores.rules, *self.costs(view, scores).result()]


def reports(view: WorkspaceView) -> list[Served]:
    """Every group's report, shadows' too."""
    return [
        (group, member)
        for group in view.groups.values()
        for member in group.members.values()
        if isinstance(member.server, QualityReport)
    ]


def _taken(member: MemberView) -> Callable[[], Scored]:
    """Take a report's scores while its view stands still; what can be worked out later is, when they are asked for."""
    server = member.server
    if member.serves(ScoredReport):
        found: Scored = server.scored()
        return lambda: found
    measured: Measured = server.measured()
    return measured.scored


def _replaced(view: WorkspaceView, candidate: GroupView) -> list[GroupView]:
    """The live groups that a promotion would demote; none whose code is gone: it stands still."""
    return [
        one
        for one in view.live()
        if one is not candidate and not one.outdated and one.group.names & candidate.group.names
    ]


def _live(view: WorkspaceView, candidate: Served) -> Served | None:
    """The live report of the same name, if the candidate is another one; none whose code is gone: it stands still."""
    name = candidate[1].runtime.instance.name
    found = view.servers(QualityReport, name)
    return next(
        (one for one in found[:1] if one[0] is not candidate[0] and one[0] in view.live() and not one[0].outdated), None
    )
