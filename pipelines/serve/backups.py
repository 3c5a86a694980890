"""A backup of the whole ledger, made while serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.auth import LOCAL, OPERATOR
from streamfold.pipelines.serve.call import Call, Endpoint, answer
from streamfold.pipelines.serve.jobs import Progress
from streamfold.pipelines.serve.problems import at


class Backup(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/backups``."""

    target: str
    """A folder on the server's host that is not there yet: absolute, or below ``backups`` in the data folder."""


async def post_backup(call: Call) -> Response:
    """Start a backup of the ledger, all workspaces of it."""
    body = await call.struct(Backup)
    target = _target(call, body.target)
    node, workspace = call.service.node, call.workspace

    def work(step: Progress) -> Any:
        node.ledger.audit(
            workspace,
            actor=call.principal.name,
            action="backup",
            target=str(target),
            reason="",
            at_us=node.context.clock.now_us(),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        manifest = node.ledger.backup(target, step, archive=node.context.history.home)
        size = sum(file["size"] for file in manifest["files"].values())
        names = ("made_at", "timeline_id", "positions")
        return {"target": str(target), "bytes": size, **{name: manifest[name] for name in names}}

    return answer({"job_id": call.service.jobs.start("backup", workspace, work).job_id}, 202)


def _target(call: Call, given: str) -> Path:
    """Resolve the target; with a key only below the data folder's ``backups``, because a key is not a login."""
    if not given.strip() or "\0" in given:
        raise at("/target", "invalid-value", "target is empty: name a folder on the server's host")
    root = (call.service.settings.data / "backups").resolve()
    target = (root / given).resolve()
    anywhere = call.principal is LOCAL and Path(given).is_absolute()
    if target == root or not (anywhere or target.is_relative_to(root)):
        raise at("/target", "invalid-value", f"target must be a folder below {root}")
    if target.exists():
        raise at("/target", "invalid-value", f"{target} is already there: name a folder that is not")
    return target


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/backups", run=post_backup, scope=OPERATOR, body=Backup, status=202,
        summary="Back up the ledger into a folder of the server's host", example={"target": "2026-01-31"},
        returns=examples.JOB_STARTED, errors=(400, 415, 422),
    ),
]  # fmt: skip
