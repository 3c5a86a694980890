"""Changed declarations that are to take over by themselves: let by the gate, or held as shadows, and why.

``on_change = "replace"`` makes a changed declaration a shadow that takes over once it has caught up. Where its scores
and those of what is live are measured, that needs what ``policies promote`` needs: every rule passes. The scores are
in the views, so it is a serving process that asks; any may, whoever comes first promotes, in one transaction. While
something is undecided or fails the shadow goes on and is judged again as outcomes come. What the gate says stands in
the status, in a gauge, and when it changes in the log of the service and as an event ``gate.judged`` (once per
verdict, whichever process judges; rules may alert on it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Gauge

from streamfold.core.clock import to_rfc3339
from streamfold.core.context import Group
from streamfold.core.errors import NotCaughtUp, VersionConflict
from streamfold.core.fold import versions
from streamfold.core.hooks import GateRule
from streamfold.core.views import GroupView, WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.gate import Gate
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.own_events import OwnEvents, own_event
from streamfold.pipelines.serve.rounds import Rounds, open_views

SOURCE = "streamfold:gate"
"""``source`` of the events."""
Verdict = Literal["undecided", "fail", "pass"]
_LOOK_S = 0.5
_FAILED_S = 10.0
_EVERY_S, _QUIET_S = 5.0, 60.0
"""How often a shadow is judged that has folded something since; that has not."""
_OPEN_S = 5.0
"""How often a view is opened of a workspace in which a shadow waits, and which nobody asks here."""
_SHARE = 20
"""After a judgement that took long it is not judged again for so many times as long."""
_MOST_ID = 256


@dataclass(slots=True)
class Held:
    """Why a changed declaration has not taken over: the rules that did not pass, since when."""

    verdict: Verdict
    rules: list[GateRule]
    since_us: int

    def as_json(self) -> dict[str, Any]:
        rules = [asdict(rule) for rule in self.rules]
        return {"verdict": self.verdict, "since": to_rfc3339(self.since_us), "rules": rules}


@dataclass(slots=True)
class _Looked:
    """When a shadow is to be judged again, and up to where it had folded when it was.

    ``head``: of the log when it was first seen; it is not judged before it has come there.
    """

    head: int
    due: float = 0.0
    watermark: int = -1


class Takeovers:
    """Looks after the changed declarations of one serving process.

    Parameters
    ----------
    events : logs what the gate says (blocks).
    """

    def __init__(self, node: Node, gate: Gate, events: OwnEvents, registry: CollectorRegistry) -> None:
        self._node, self._gate, self._events = node, gate, events
        self._held: dict[tuple[str, str], Held] = {}
        self._looked: dict[tuple[str, str], _Looked] = {}
        self._log = logger()
        self._gauge = Gauge(
            "streamfold_takeover_held", "1: a changed declaration does not take over by itself",
            ["workspace", "group", "verdict"], registry=registry,
        )  # fmt: skip
        is_asked = node.settings.on_change != "manual"
        self._open_at, self._opened_last = 0.0, ""
        self._rounds = (
            Rounds("takeovers", self._views, self._look, every_s=_LOOK_S, failed_s=_FAILED_S) if is_asked else None
        )

    def held(self, workspace: str, group: str) -> Held | None:
        """What keeps a group from taking over by itself, as it was found last; None: nothing, or it is not to."""
        return self._held.get((workspace, group))

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()

    # -- looking ------------------------------------------------------------------------------------------------------
    def _views(self) -> Iterator[WorkspaceView]:
        """The open views; now and then one more, of a workspace that nobody asks and in which a shadow waits.

        In turns, so that many such workspaces only pass through: what is closed for them was asked longest ago.
        """
        yield from open_views(self._node)
        views, started = self._node.views, time.monotonic()
        if views is None or started < self._open_at or not versions.gated(self._node.context):
            return
        self._open_at = started + _OPEN_S
        name = self._unopened({view.name for view in views.opened()})
        if name is None:
            return
        self._opened_last = name
        try:
            with views.using(name) as view:
                self._open_at = max(self._open_at, _again(started))
                yield view
        except Exception as error:  # the next turn is another's
            self._open_at = max(self._open_at, _again(started))
            self._log.error("takeovers_failed", workspace=name, error=repr(error), exc_info=error)

    def _unopened(self, opened: Set[str]) -> str | None:
        """The next workspace that is not open, by name, of those that wait for a judgement of what is declared.

        What is not measured takes over in its fold, and needs no view.
        """
        context = self._node.context
        declared = context.declared_stacks()
        found = {workspace for workspace, stack in self._node.ledger.taking_over() if stack in declared} - opened
        in_turn = sorted(found, key=lambda name: (name <= self._opened_last, name))
        return next((name for name in in_turn if any(map(partial(self._is_judged, name), context.groups(name)))), None)

    def _is_judged(self, workspace: str, group: Group) -> bool:
        context = self._node.context
        return group.slot == "shadow" and context.declares(group) and versions.measured(context, workspace, group)

    def _look(self, view: WorkspaceView) -> None:
        there = set()
        for group in self._waiting(view):
            there.add((view.name, group.group.name))
            self._judge(view, group)
        for key in [key for key in self._looked if key[0] == view.name and key not in there]:
            del self._looked[key]
            self._let_go(key)

    def _waiting(self, view: WorkspaceView) -> Iterator[GroupView]:
        """Shadows that are to take over by themselves."""
        for name, group in list(view.groups.items()):
            state = view.states.get(name)
            if state is None or group.group.slot != "shadow" or name in view.serving.live:
                continue
            if versions.takes_over(view.context, state, group.group):
                yield group

    def _judge(self, view: WorkspaceView, group: GroupView) -> None:
        """Let a shadow that has caught up take over if all rules pass; otherwise say why not."""
        looked = self._looked.setdefault((view.name, group.group.name), _Looked(view.head))
        started, watermark = time.monotonic(), group.watermark
        quiet_s = _QUIET_S if watermark == looked.watermark else 0.0
        lag = view.head - watermark
        if started < looked.due + quiet_s or watermark < looked.head or lag > view.context.settings.fold.batch_events:
            return
        context, about = view.context, _about(view, group)
        revision = context.ledger.slots_revision(view.name)
        rules = self._scored(view, group)
        try:
            failed = versions.replace_declared(
                context, view.name, group.group, rules=rules, revision=revision, wait=True
            )
        except VersionConflict:
            looked.due = time.monotonic() + _LOOK_S
            return
        except NotCaughtUp:
            looked.due = _again(started)
            return
        looked.watermark, looked.due = watermark, _again(started)
        self._say(view, group, failed, about | {"at_position": watermark}, is_news=bool(rules))

    def _scored(self, view: WorkspaceView, group: GroupView) -> list[GateRule]:
        """Ask the gate, about times only where scores pass. No rules: it is not asked."""
        context = view.context
        if not (versions.gated(context) and versions.measured(context, view.name, group.group)):
            return []
        scores = self._gate.scores(view, group.group.name)
        if scores is None:
            detail = "this process does not show the scores of it, or of what is live under its names, to compare them"
            return [GateRule(rule="measured_here", passed=False, detail=detail, undecided=True)]
        if not all(rule.passed for rule in scores.rules):
            return scores.rules
        return [*scores.rules, *self._gate.costs(view, scores).result()]

    # -- saying -------------------------------------------------------------------------------------------------------
    def _say(
        self, view: WorkspaceView, group: GroupView, failed: list[GateRule], about: dict[str, Any], *, is_news: bool
    ) -> None:
        """Keep what was found for the status; make a verdict known where it is another one.

        ``is_news``: also one that is no failure. What takes over without a gate, or waits for an erasure, is none.
        """
        key, verdict = (view.name, group.group.name), _verdict(failed)
        before = self._held.get(key)
        if before is not None and before.verdict == verdict:
            before.rules = failed
            return
        if is_news or verdict == "fail":
            self._log_verdict(view, verdict, failed, about)
        self._let_go(key)
        if failed:
            self._gauge.labels(*key, verdict).set(1)
            self._held[key] = Held(verdict, failed, view.context.clock.now_us())

    def _log_verdict(
        self, view: WorkspaceView, verdict: Verdict, failed: list[GateRule], about: dict[str, Any]
    ) -> None:
        detail = "; ".join(f"{rule.rule}: {rule.detail}" for rule in failed)[:1000] or None
        data = about | {
            "verdict": verdict,
            "failed": list(dict.fromkeys(rule.rule for rule in failed)),
            "detail": detail,
        }
        say = self._log.info if verdict == "pass" else self._log.warning
        say("gate_judged", workspace=view.name, **data)
        named = f"{data['group']}\0{data['live']}\0{verdict}".encode()
        id_ = f"gate-{blake2b(named, digest_size=12).hexdigest()}"
        self._events.log(view, [own_event(SOURCE, "gate.judged", id_, data)])

    def _let_go(self, key: tuple[str, str]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._gauge.remove(*key, held.verdict)


def _again(started: float) -> float:
    """When to judge again what was begun to be judged then."""
    now = time.monotonic()
    return now + max(_EVERY_S, _SHARE * (now - started))


def _verdict(failed: Sequence[GateRule]) -> Verdict:
    if not failed:
        return "pass"
    return "undecided" if all(rule.undecided for rule in failed) else "fail"


def _about(view: WorkspaceView, group: GroupView) -> dict[str, Any]:
    """Name what changed and what is live, as a ``gate.judged`` event does."""
    members = sorted((runtime.instance for runtime in group.group.runtimes), key=lambda one: one.name)
    live = {
        member.runtime.instance.name: member.runtime.instance for one in view.live() for member in one.members.values()
    }
    changed = [f"{m.name}@{m.label}" for m in members if m.name not in live or live[m.name].label != m.label]
    policy = "+".join(changed) or group.group.name
    return {
        "policy": policy if len(policy.encode()) <= _MOST_ID else changed[0],
        "group": group.group.name,
        "live": "+".join(sorted({live[m.name].group for m in members if m.name in live})),
    }
