"""Alerts, posted as JSON by a thread of their own: bounded, with a timeout and a few attempts.

URL and token stay out of logs and messages; a URL is named by its host.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client import CollectorRegistry, Counter

from streamfold.core.settings import RuleSettings
from streamfold.pipelines.serve.logs import logger

_MOST = 100
_CLOSE_S = 10.0
_LOOK_S = 0.5
_FIRST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Alert:
    workspace: str
    rule: RuleSettings
    body: Mapping[str, Any]


class Webhooks:
    """Posts alerts in order; what does not fit or is refused is logged and counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting: queue.Queue[_Alert] = queue.Queue(_MOST)
        self._stop = threading.Event()
        self._log = logger()
        self._count = Counter(
            "streamfold_alerts", "Alerts of rules by what became of them", ["workspace", "rule", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._thread: threading.Thread | None = None

    def send(self, workspace: str, rule: RuleSettings, body: Mapping[str, Any]) -> None:
        """Have an alert posted soon; nothing is posted where the rule has no URL."""
        if not url_of(rule):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="alerts", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Alert(workspace, rule, body))
        except queue.Full:
            self._done(workspace, rule, "dropped", f"{_MOST} alerts are waiting")

    def close(self) -> None:
        """Post what waits, one attempt each, for some seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)

    def _loop(self) -> None:
        while True:
            try:
                alert = self._waiting.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            rule = alert.rule
            try:
                with httpx.Client(follow_redirects=False) as http:
                    error = self._posted(http, rule, alert.body)
            except Exception as failed:  # settings of the environment: a proxy, certificates
                error = type(failed).__name__
            self._done(alert.workspace, rule, "failed" if error else "delivered", error)

    def _posted(self, http: httpx.Client, rule: RuleSettings, body: Mapping[str, Any]) -> str:
        """Post until it is taken; returns why it was not."""
        error, pause_s = "", _FIRST_PAUSE_S
        for attempt in range(rule.attempts):
            if attempt and self._stop.wait(pause_s * 2 ** (attempt - 1)):
                break
            try:
                status = http.post(
                    url_of(rule), json=dict(body), headers=_headers(rule), timeout=rule.timeout_s
                ).status_code
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as failed:
                error = type(failed).__name__  # its text may have the URL
                continue
            if status < 300:
                return ""
            error = f"answered {status}"
            if status < 500 and status not in (408, 429):
                break  # asked again it would say the same
        return error

    def _done(self, workspace: str, rule: RuleSettings, outcome: str, error: str) -> None:
        self._count.labels(workspace, rule.name, outcome).inc()
        if error:
            try:
                host = urlsplit(url_of(rule)).hostname
            except ValueError:
                host = None
            self._log.error("alert_not_delivered", workspace=workspace, rule=rule.name, host=host, error=error)


def url_of(rule: RuleSettings) -> str:
    """Return where a rule posts; empty: nowhere."""
    return rule.url or (os.environ.get(rule.url_env, "") if rule.url_env else "")


def _headers(rule: RuleSettings) -> dict[str, str]:
    token = os.environ.get(rule.secret_env, "") if rule.secret_env else ""
    return {"Authorization": f"Bearer {token}"} if token else {}
