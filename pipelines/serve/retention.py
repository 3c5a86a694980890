"""What may leave the log: what is set, what the last run did, and a run now (or what it would do)."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.fold import Keeper
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import Call, Endpoint, answer, rfc3339
from streamfold.pipelines.serve.jobs import Progress

_LOOK_S = 0.1


class Run(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/retention``."""

    dry_run: bool = False
    """Only say what would leave."""


async def post_retention(call: Call) -> Response:
    """Ask whoever folds to let go of what may leave the log now; the job follows it."""
    body = await call.struct(Run, default=b"{}")
    node, workspace = call.service.node, call.workspace
    if body.dry_run:

        def plan(step: Progress) -> dict[str, Any]:
            return Keeper(node.context).plan(workspace).as_json()

        return answer({"job_id": call.service.jobs.start("retention-plan", workspace, plan).job_id}, 202)
    actor, at_us = call.principal.name, node.context.clock.now_us()
    asked_us = await call.ask(lambda: node.ledger.ask_retention(workspace, actor=actor, at_us=at_us))
    if node.runner is not None:
        node.runner.wake_keep()

    def follow(step: Progress) -> dict[str, Any]:
        while (state := node.ledger.retention(workspace)).ran_us < asked_us:
            step(0, 1)
            time.sleep(_LOOK_S)
        report: dict[str, Any] = json.loads(state.report)
        return report

    return answer({"job_id": call.service.jobs.follow("retention", workspace, follow).job_id}, 202)


async def get_retention(call: Call) -> Response:
    """What is set, what the last run did, and what is in the archive."""
    return answer(await call.ask(_shown, call))


def _shown(call: Call) -> dict[str, Any]:
    node, workspace = call.service.node, call.workspace
    state, departures = node.ledger.retention(workspace), node.ledger.departures(workspace)
    files = [departure for departure in departures if departure.name]
    return {
        **node.settings.retention.model_dump(),
        "ran_at": rfc3339(state.ran_us),
        "report": json.loads(state.report or "null"),
        "left_upto": node.ledger.left_upto(workspace),
        "archived": {
            "folder": str(node.context.history.folder(workspace)),
            "files": len(files),
            "events": sum(departure.events for departure in files),
            "bytes": sum(departure.bytes for departure in files),
            "missing": node.context.history.missing(workspace),
        },
        "gone": sum(departure.events for departure in departures if not departure.name),
    }


ENDPOINTS = [
    Endpoint(
        method="GET", path="/v1/retention", run=get_retention, scope="admin", returns=examples.RETENTION,
        summary="What is kept in the log, and what has left it",
    ),
    Endpoint(
        method="POST", path="/v1/retention", run=post_retention, scope="admin", body=Run, status=202,
        summary="Let go of what may leave the log now, or say what would", example={"dry_run": True},
        returns=examples.JOB_STARTED, errors=(400, 415, 422),
    ),
]  # fmt: skip
