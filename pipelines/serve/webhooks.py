"""Alerts, posted as JSON until they are taken: each at least once, in order by rule, for a bounded time.

An alert is kept in the ledger by the transaction that logs what the rule did, and leaves it when it was taken or is
given up: none is lost with a process, none is made by an event that somebody sends. Before an attempt it is moved to
*due later* by compare-and-set, so that one process at a time posts it, and another one repeats the attempt of one that
died. Who gets one twice knows it by its id (``id`` in the body, and the header ``Idempotency-Key``).

URL and token stay out of logs and messages; a URL is named by its host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
from prometheus_client import CollectorRegistry, Counter

from streamfold.core import crash
from streamfold.core.clock import US
from streamfold.core.ledger.abc import Alert
from streamfold.core.settings import RuleSettings
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.rounds import Rounds

_LOOK_S = 0.25
_OTHERS_S = 5.0
"""How often it is looked for what another process has left."""
_GONE_S = 60.0
"""How often alerts are looked through where no rule posts any: they are of rules that are gone."""
_FAILED_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_MOST = 1000
"""So many alerts of a rule wait at most."""
_GIVE_UP_S = 86_400
"""Of alerts of a rule that the settings do not have any more."""
_FINAL = frozenset((400, 405, 410, 413, 415, 422))
"""Asked again it would say the same of this body; another status may be of a service that is being set up."""


class Webhooks:
    """Delivers the alerts of one serving process's rules, in a thread of its own.

    Parameters
    ----------
    rules : those that may alert; one without a URL posts nothing.
    """

    def __init__(self, node: Node, rules: Sequence[RuleSettings], registry: CollectorRegistry) -> None:
        self._node = node
        self._rules = {rule.name: rule for rule in rules if rule.do == "alert" and url_of(rule)}
        self._others_at = 0.0
        """When to look for what another process has left."""
        self._woken: set[str] = set()
        """Workspaces in which an alert was kept here, or waits."""
        self._orphans: set[tuple[str, str]] = set()
        """Workspaces and rules that are gone, of which was said that their alerts wait."""
        self._log = logger()
        self._count = Counter(
            "streamfold_alerts", "Alerts of rules by what became of them", ["workspace", "rule", "outcome"],
            registry=registry,
        )  # fmt: skip
        every_s = _LOOK_S if self._rules else _GONE_S
        self._rounds = Rounds("alerts", self._due, self._look, every_s=every_s, failed_s=_FAILED_S)

    def takes(self, workspace: str, rule: RuleSettings) -> bool:
        """Whether an alert of a rule is to be kept for delivery: it has a URL, and not too many wait."""
        if rule.name not in self._rules:
            return False
        if sum(one.rule == rule.name for one in self._node.ledger.alerts(workspace)) < _MOST:
            return True
        self._said(workspace, rule.name, "dropped", error=f"{_MOST} alerts are waiting")
        return False

    def wake(self, workspace: str) -> None:
        """An alert was kept."""
        self._woken.add(workspace)

    def close(self) -> None:
        """End, after the attempt under way; what waits is delivered by whoever serves next."""
        self._rounds.close()

    # -- what is due --------------------------------------------------------------------------------------------------
    def _due(self) -> list[str]:
        """The workspaces to look at, whether a view of them is open here or not."""
        now = time.monotonic()
        due, self._woken = self._woken, set()  # an alert that is kept from here on has it looked at again
        if now >= self._others_at:
            self._others_at = now + _OTHERS_S
            due.update(self._node.ledger.alerting_workspaces())
        return sorted(due)

    def _look(self, workspace: str) -> None:
        waiting: set[str] = set()
        """Rules of which an alert waits: later ones wait behind it."""
        for alert in self._node.ledger.alerts(workspace):
            if self._rounds.stopped():
                return
            if alert.rule not in self._rules:
                self._look_at_orphan(workspace, alert)
            elif alert.rule not in waiting and not self._done(workspace, alert):
                waiting.add(alert.rule)
        if waiting:
            self._woken.add(workspace)

    def _done(self, workspace: str, alert: Alert) -> bool:
        """Try an alert if it is due and nobody else does; False: it waits."""
        rule, ledger, now_us = self._rules[alert.rule], self._node.ledger, self._node.context.clock.now_us()
        if alert.due_us > now_us:
            return False
        busy_us = int((4 * rule.timeout_s + 5) * US)  # the timeout is of each step: connect, send, wait, read
        tried = replace(alert, attempts=alert.attempts + 1, due_us=now_us + busy_us)
        if not ledger.move_alert(workspace, alert, attempts=tried.attempts, due_us=tried.due_us):
            return False
        error, is_final = _posted(rule, alert)
        crash.point("alerts.posted")
        now_us = self._node.context.clock.now_us()
        if error and not is_final and now_us < alert.made_us + rule.give_up_s * US:
            pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(alert.attempts, 30), _LONGEST_PAUSE_S)
            ledger.move_alert(workspace, tried, attempts=tried.attempts, due_us=now_us + int(pause_s * US))
            self._said(workspace, rule.name, "retried", error=f"{error}; again in {pause_s:g} s")
            return False
        return self._end(workspace, alert, "failed" if error else "delivered", error)

    def _look_at_orphan(self, workspace: str, alert: Alert) -> None:
        """Give up an alert whose rule is not known here, or posts nowhere any more, once it is old.

        Until then it waits: another process may have the rule still, or this one again.
        """
        if self._node.context.clock.now_us() > alert.made_us + _GIVE_UP_S * US:
            self._end(workspace, alert, "failed", "its rule is gone")
        elif (workspace, alert.rule) not in self._orphans:
            self._orphans.add((workspace, alert.rule))
            self._log.warning("alert_without_rule", workspace=workspace, rule=alert.rule, given_up_after_s=_GIVE_UP_S)

    def _end(self, workspace: str, alert: Alert, outcome: str, error: str) -> bool:
        self._node.ledger.end_alert(workspace, alert.alert_id)
        self._said(workspace, alert.rule, outcome, error=error)
        return True

    def _said(self, workspace: str, rule: str, outcome: str, *, error: str) -> None:
        self._count.labels(workspace, rule, outcome).inc()
        if not error:
            return
        try:
            host = urlsplit(url_of(self._rules[rule])).hostname if rule in self._rules else None
        except ValueError:
            host = None
        if outcome == "retried":
            self._log.warning("alert_retried", workspace=workspace, rule=rule, host=host, error=error)
        else:
            self._log.error("alert_not_delivered", workspace=workspace, rule=rule, host=host, error=error)


def _posted(rule: RuleSettings, alert: Alert) -> tuple[str, bool]:
    """Post once; returns why it was not taken (empty: it was), and whether that is final."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": alert.alert_id, **_token(rule)}
    try:
        with httpx.Client(follow_redirects=False) as http:
            status = http.post(url_of(rule), content=alert.body, headers=headers, timeout=rule.timeout_s).status_code
    except Exception as failed:  # the network, or settings of the environment: a proxy, certificates
        return type(failed).__name__, False  # its text may have the URL
    return ("", True) if status < 300 else (f"answered {status}", status in _FINAL)


def url_of(rule: RuleSettings) -> str:
    """Return where a rule posts; empty: nowhere."""
    return rule.url or (os.environ.get(rule.url_env, "") if rule.url_env else "")


def _token(rule: RuleSettings) -> dict[str, str]:
    token = os.environ.get(rule.secret_env, "") if rule.secret_env else ""
    return {"Authorization": f"Bearer {token}"} if token else {}
