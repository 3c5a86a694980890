"""The gate, asked in a serving process: a candidate's scores against those of what is live, and what it costs.

Who promotes by hand, who looks, and a changed declaration that is to take over by itself get the same answer.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from streamfold.core.gate import GateLimits, judge
from streamfold.core.hooks import GateRule
from streamfold.core.quality import QualityReport
from streamfold.core.settings import GateSettings
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.gate_costs import GateCosts

Served = tuple[GroupView, MemberView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the rules about scores and bytes say, and whom the rules about time are to compare."""

    rules: list[GateRule]
    candidate: GroupView
    live: GroupView


class Gate:
    """Judges candidates for one serving process."""

    def __init__(self, settings: GateSettings) -> None:
        self.limits = GateLimits(**settings.model_dump())
        self._costs = GateCosts()

    def close(self) -> None:
        self._costs.close()

    def scores(self, view: WorkspaceView, group: str) -> Scores | None:
        """Judge a candidate by its scores; None: it, or what is live under its name, is measured by nobody here."""
        with view.asking():
            candidate = next((one for one in reports(view) if one[0].group.name == group), None)
            live = None if candidate is None else _live(view, candidate)
            if candidate is None or live is None:
                return None
            with view.reading([candidate[0], live[0]]):
                mine, theirs = candidate[1].server.measured(), live[1].server.measured()
                sizes = [one[0].stores.state_bytes() for one in (candidate, live)]
        rules = judge(mine.scored(), theirs.scored(), self.limits, candidate_bytes=sizes[0], live_bytes=sizes[1])
        return Scores(rules=rules, candidate=candidate[0], live=live[0])

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


def _live(view: WorkspaceView, candidate: Served) -> Served | None:
    """The live report of the same name, if the candidate is another one."""
    name = candidate[1].runtime.instance.name
    found = view.servers(QualityReport, name)
    return found[0] if found and found[0][0] is not candidate[0] and found[0][0] in view.live() else None
