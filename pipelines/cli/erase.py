"""``erase``: remove all traces of a user, an item or a document."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.policies import follow, start, unequal
from streamfold.pipelines.cli.state import FAILED, TIMED_OUT, CliError, Globals

HELP = """Remove all traces of a user, an item or a document; hidden at once, removed in the background.

\b
Examples:
  streamfold erase user u-1 --wait
  streamfold erase user u-1 --verify      also compare with the log folded afresh
  streamfold erase document manual-7
"""
_POLL_S = 0.1


class Kind(StrEnum):
    """What can be erased."""

    user = "user"
    item = "item"
    document = "document"


def register(app: typer.Typer) -> None:
    app.command("erase", help=HELP)(erase)


def erase(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(metavar="user|item|document")],
    id_: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing is left, and print the report.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Wait, then fold the log afresh and compare each policy's state with it.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most, for each.")] = 3600.0,
) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        body = client.post("/v1/erasures", {f"{kind.value}_id": id_})
        if not (wait or verify):
            options.print(f"erasure {body['erasure_id']} accepted at position {body['position']}", body)
            return
        report = erased(client, body["erasure_id"], timeout)
        if verify and report["state"] == "complete":
            differences = _verified(options, client, report, timeout)
            report = {**client.get(f"/v1/erasures/{body['erasure_id']}"), "verified": differences}
    options.print(_told(report), report)
    if report["state"] == "failed" or any(report.get("verified", {}).values()):
        raise typer.Exit(FAILED)


def _verified(options: Globals, client: Any, report: Mapping[str, Any], timeout_s: float) -> dict[str, list[str]]:
    """What differs from the log folded afresh, by policy that is still there."""
    found = {}
    touched = {str(one["policy"]).partition("@")[0] for one in report["policies"]}
    rows = [row for row in client.get("/v1/policies")["items"] if row["slot"] == "live" and row["policy"] in touched]
    for name in sorted({row["group"]: row["policy"] for row in rows}.values()):  # a group is folded as one
        job_id = start(client, name, "verify", reason="after an erasure")
        found[name] = unequal(follow(options, client, job_id, f"verify {name}", timeout_s))
    return found


def erased(client: Any, erasure_id: str, timeout_s: float) -> Mapping[str, Any]:
    """Wait until an erasure has come to its end, and return its report. Raises ``CliError`` when it does not."""
    end = time.monotonic() + timeout_s
    while True:
        report: Mapping[str, Any] = client.get(f"/v1/erasures/{erasure_id}")
        if report["state"] in ("complete", "failed"):
            return report
        if time.monotonic() > end:
            raise CliError(f"erasure {erasure_id} is still {report['state']} after {timeout_s:g} s", TIMED_OUT)
        time.sleep(_POLL_S)


def _told(report: Mapping[str, Any]) -> str:
    removed = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in (report["removed"] or {}).items())
    lines = [f"erasure {report['erasure_id']}: {report['state']}; removed: {removed}"]
    lines += [
        f"  {p['policy']}: {p['method']}, {p['state']}, {p['removed']} events{_away(p)}" for p in report["policies"]
    ]
    residue = sum(store["residue"] for store in report["stores"])
    lines.append(f"  looked through {len(report['stores'])} stores: {residue} traces left")
    for name, differences in report.get("verified", {}).items():
        lines.append(
            f"  {name}: " + ("; ".join(differences) or "equal to the log folded afresh without it, bit for bit")
        )
    lines += [f"  not covered: {what}" for what in report["not_covered"]]
    return "\n".join(lines)


def _away(policy: Mapping[str, Any]) -> str:
    """How far it is from the log folded afresh, where that was compared."""
    delta = policy["delta"]
    if delta is None:
        return ""
    more = {"rows it alone has": "only_live", "rows it lacks": "only_afresh", "values unlike": "unequal"}
    counts = "".join(f", {delta[name]} {what}" for what, name in more.items() if delta[name])
    where = f" in {delta['column']}" if delta["column"] else ""
    return f"; max |Δstate| {policy['max_abs_delta']:g} ({delta['relative']:g} of the largest entry{where}{counts})"
