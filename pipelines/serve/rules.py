"""Rules of the settings: what is done about alarms. A shadow, a rebuild or an alert; never a promotion.

The rules read the log: each ``drift.detected`` event (and ``gate.judged``, to alert) past where they have looked, once
per workspace. What a rule did is an event too, ``rule.applied``, logged in one transaction with how far the rules have
looked and with when the rule acted last on this policy; both are intakes of the ledger, moved by compare-and-set. So
after a crash, a restart or beside another process an alarm is acted on once: shadows and rebuilds are made before that
transaction and made once however often they are asked for (``core/fold/refresh.py``); an alert is kept in that
transaction, and delivered by ``webhooks.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter

from streamfold.core.clock import US, to_rfc3339
from streamfold.core.errors import ConfigError, IntakeConflict, VersionError
from streamfold.core.events import Event
from streamfold.core.events.types import DriftDetected, GateJudged
from streamfold.core.fold import refresh
from streamfold.core.ledger.abc import NORMAL, Alert, IntakeMove, IntakeState
from streamfold.core.registry import Registry
from streamfold.core.settings import RuleSettings
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.own_events import OwnEvents, own_event
from streamfold.pipelines.serve.rounds import Rounds, open_views
from streamfold.pipelines.serve.webhooks import Webhooks, url_of

SOURCE = "streamfold:rules"
"""``source`` of the events, and the actor in the audit trail."""
INTAKE = "rules:"
"""How the names of these intakes begin."""
_LOG = f"{INTAKE}log"
_TYPES = ("drift.detected", "gate.judged")
_LOOK_S = 0.5
_FAILED_S = 10.0
_PAGE = 64
_KEEP_EVERY = 10_000
"""So many positions without an alarm are kept as looked at: a restart would go through them again."""


@dataclass(frozen=True, slots=True)
class _Act:
    """What a rule did about an alarm. ``policy``: about which; ``outcome``: ``applied`` or ``refused``."""

    rule: RuleSettings
    policy: str
    outcome: str
    detail: str


class Rules:
    """The rules of one serving process.

    Parameters
    ----------
    events : logs them, with the moves of intakes (blocks).

    Raises
    ------
    ConfigError : a rule would make a candidate of a configuration that its policy does not take.
    """

    def __init__(self, node: Node, events: OwnEvents, registry: CollectorRegistry) -> None:
        self._node, self._events = node, events
        self._rules = node.settings.rules
        self._log = logger()
        self._since_us = node.context.clock.now_us()
        self._at: dict[str, tuple[int, int]] = {}
        """By workspace: up to where the log was looked at, and what of that is stored."""
        self._count = Counter(
            "streamfold_rules_applied", "Alarms that rules acted on", ["workspace", "rule", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._webhooks = Webhooks(node, self._rules, registry)
        for rule in self._rules:
            self._check(rule, node.registry)
        self._rounds = (
            Rounds("rules", partial(open_views, node), self._look, every_s=_LOOK_S, failed_s=_FAILED_S)
            if self._rules
            else None
        )

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()
        self._webhooks.close()

    def _check(self, rule: RuleSettings, registry: Registry) -> None:
        """Say at the start what would otherwise be found out in an alarm."""
        declared = self._node.settings.policies
        if rule.policy and rule.policy not in declared:
            self._log.warning("rule_of_undeclared_policy", rule=rule.name, policy=rule.policy)
        for name in filter(None, (rule.url_env, rule.secret_env)):
            if not os.environ.get(name):
                raise ConfigError(f"rule {rule.name!r}: the environment variable {name} is not set")
        if (url := url_of(rule)) and not url.startswith(("http://", "https://")):
            raise ConfigError(f"rule {rule.name!r}: its URL must begin with http:// or https://")
        if rule.config and rule.policy in declared:
            values = dict(declared[rule.policy])
            kind = registry.policy_class(str(values.pop("use", rule.policy)))
            try:
                registry.make_config(rule.policy, kind, values | rule.config)
            except ConfigError as error:
                raise ConfigError(f"rule {rule.name!r}: config: {error}") from error

    # -- reading the log ----------------------------------------------------------------------------------------------
    def _look(self, view: WorkspaceView) -> None:
        assert self._rounds is not None
        try:
            while not self._rounds.stopped() and self._page(view):
                pass
        except IntakeConflict:
            self._at.pop(view.name, None)  # another process looks too

    def _page(self, view: WorkspaceView) -> bool:
        """Act on the next alarms; False: there are no more."""
        if view.name not in self._at:
            self._begin(view)
        at, _ = self._at[view.name]
        page = self._node.ledger.read(view.name, at, _PAGE, types=_TYPES)
        for row in page.rows:
            if row.effect == NORMAL:
                self._alarm(view, self._node.registry.event_types.decode(row))
        stored = self._at[view.name][1]
        more = len(page.rows) == _PAGE
        end = page.rows[-1].seq if more else max(page.head, at)
        if end - stored >= _KEEP_EVERY:
            self._events.log(view, [], [_move(_LOG, _LOG, stored, end)])
            stored = end
        self._at[view.name] = (end, stored)
        return more

    def _begin(self, view: WorkspaceView) -> None:
        """Go on where the rules of this workspace have come to; where there were none, with alarms from now on."""
        before = self._states(view.name).get(_LOG)
        if before is None:
            at = self._old(view.name)
            self._events.log(view, [], [_move(_LOG, _LOG, None, at)])
        else:
            at = before.next_offset
        self._at[view.name] = (at, at)

    def _old(self, workspace: str) -> int:
        """The last alarm that was logged before this process started; 0: none was."""
        at = 0
        while rows := self._node.ledger.read(workspace, at, _PAGE, types=_TYPES).rows:
            old = [row.seq for row in rows if row.recorded_us < self._since_us]
            at = max(old, default=at)
            if len(old) < len(rows):
                break
        return at

    def _states(self, workspace: str) -> dict[str, IntakeState]:
        return {one.intake: one for one in self._node.ledger.intakes(workspace) if one.intake.startswith(INTAKE)}

    # -- acting -------------------------------------------------------------------------------------------------------
    def _alarm(self, view: WorkspaceView, alarm: Event) -> None:
        """Do what the rules say about an alarm, and log that it is done."""
        states = self._states(view.name)
        now_us = self._node.context.clock.now_us()
        moves, acts = [_move(_LOG, _LOG, self._at[view.name][1], alarm.seq)], []
        for rule in self._rules:
            if not heeds(rule, alarm.data):
                continue
            for policy in self._targets(rule, alarm.data, view.name):
                intake = f"{INTAKE}{rule.name}:{policy}"
                before = states.get(intake)
                if before is not None and self._cools_down(view.name, rule, before, alarm):
                    continue
                act = self._act(view.name, rule, policy, alarm)
                acts.append(act)
                if act.outcome == "applied":
                    stood = None if before is None else before.next_offset
                    alerts = rule.do == "alert" and self._webhooks.takes(view.name, rule)
                    alert = self._alert(view.name, act, alarm, now_us) if alerts else None
                    moves.append(replace(_move(intake, f"{INTAKE}{rule.name}", stood, alarm.seq), alert=alert))
        if not acts:
            return
        self._events.log(view, [_event(act, alarm) for act in acts], moves)
        self._at[view.name] = (alarm.seq, alarm.seq)
        self._webhooks.wake(view.name)
        for act in acts:
            self._count.labels(view.name, act.rule.name, act.outcome).inc()
            self._log.warning("rule_applied", workspace=view.name, **_said(act, alarm))

    def _cools_down(self, workspace: str, rule: RuleSettings, before: IntakeState, alarm: Event) -> bool:
        """Whether the alarm comes too soon after the last one that the rule acted on, by when they were logged."""
        if alarm.seq <= before.next_offset:
            return True
        last = self._node.ledger.rows(workspace, [before.next_offset])
        at_us = last[0].recorded_us if last else before.updated_us  # it may have left the log
        return alarm.recorded_us < at_us + rule.at_most_every_s * US

    def _targets(self, rule: RuleSettings, alarm: DriftDetected | GateJudged, workspace: str) -> Sequence[str]:
        """Name the policies to act on: the rule's, or of each live group that the alarm names the first one.

        An empty name: none of those named is live. An alarm alerts once, whatever it names.
        """
        groups: dict[str, str] = {}
        named = {rule.policy} if rule.policy else named_in(alarm)
        for group in self._node.context.groups(workspace):
            names = sorted(r.instance.name for r in group.runtimes if r.instance.name in named)
            if group.slot == "live" and names:
                groups[group.name] = names[0]
        found = sorted(groups.values()) or [rule.policy]
        return found[:1] if rule.do == "alert" else found

    def _act(self, workspace: str, rule: RuleSettings, policy: str, alarm: Event) -> _Act:
        if rule.do == "alert":
            return _Act(rule, policy, "applied", "alert")
        context = self._node.context
        reason = f"rule {rule.name}: {alarm.data.detector} at position {alarm.data.at_position or alarm.seq}"[:4096]
        why: dict[str, Any] = {"since_us": alarm.recorded_us, "actor": SOURCE, "reason": reason}
        if not policy:
            return _Act(rule, policy, "refused", "the alarm names no live policy")
        try:
            if rule.do == "shadow":
                group = refresh.shadow(
                    context, workspace, policy, config=rule.config, start=rule.start, rate=rule.rate, **why
                )
            else:
                group = refresh.consolidate(context, workspace, policy, **why)
        except (ConfigError, VersionError) as error:
            return _Act(rule, policy, "refused", str(error)[:1000])
        return _Act(rule, policy, "applied", group)

    def _alert(self, workspace: str, act: _Act, alarm: Event, now_us: int) -> Alert:
        event = _event(act, alarm)
        named = f"{self._node.ledger.timeline_id}\0{workspace}\0{event.id}".encode()
        id_ = blake2b(named, digest_size=16).hexdigest()
        about = {"id": id_, "at": to_rfc3339(alarm.recorded_us), "workspace": workspace}
        text = f"streamfold: {_text(alarm.data)} (workspace {workspace}, rule {act.rule.name})"
        body = {"text": text, **_said(act, alarm), **msgspec.structs.asdict(alarm.data), **about}
        said = msgspec.json.encode(body).decode()
        return Alert(alert_id=id_, rule=act.rule.name, position=alarm.seq, body=said, made_us=now_us)


def heeds(rule: RuleSettings, alarm: DriftDetected | GateJudged) -> bool:
    """Whether a rule is about an alarm, or about what the gate says."""
    if rule.policy and rule.policy not in named_in(alarm):
        return False
    if isinstance(alarm, GateJudged):
        return rule.on == "gate" and alarm.verdict == "fail"
    if rule.on != "drift" or (
        rule.detector and rule.detector not in (alarm.detector, alarm.detector.partition(":")[0])
    ):
        return False
    if rule.level <= 1 or alarm.statistic is None or alarm.threshold is None:
        return rule.level <= 1
    return alarm.statistic >= rule.level * alarm.threshold


def named_in(alarm: DriftDetected | GateJudged) -> set[str]:
    """Return the names of the policies that an alarm is about: ``a@1+b@2`` are two."""
    return {part.partition("@")[0] for part in alarm.policy.split("+")}


def _text(alarm: DriftDetected | GateJudged) -> str:
    if isinstance(alarm, GateJudged):
        return f"{alarm.policy} does not take over: {', '.join(alarm.failed)}"
    return f"{alarm.detector} saw {alarm.policy} drift"


def _move(intake: str, topic: str, before: int | None, after: int) -> IntakeMove:
    return IntakeMove(intake=intake, topic=topic, expect=before, next=after, took=0)


def _said(act: _Act, alarm: Event) -> Mapping[str, Any]:
    return {
        "rule": act.rule.name,
        "do": act.rule.do,
        "policy": act.policy or alarm.data.policy,
        "outcome": act.outcome,
        "detail": act.detail,
        "alarm_position": alarm.seq,
    }


def _event(act: _Act, alarm: Event) -> Any:
    named = f"{act.rule.name}\0{act.policy}\0{alarm.seq}".encode()
    id_ = f"rule-{alarm.seq}-{blake2b(named, digest_size=8).hexdigest()}"
    return own_event(SOURCE, "rule.applied", id_, _said(act, alarm))
