"""How good a version's scores are, over time, and whether it may take over: the series and the gate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from starlette.responses import Response

from streamfold.core.arms import Experiment, experiments
from streamfold.core.clock import US
from streamfold.core.context import Runtime
from streamfold.core.errors import nearest
from streamfold.core.hooks import GateRule
from streamfold.core.quality import ArmsReport, QualityPoint, Ranked, RankedReport
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import READ_PARAMS, Call, Endpoint, answer, rfc3339
from streamfold.pipelines.serve.gate import Served, reports
from streamfold.pipelines.serve.problems import Problem, at
from streamfold.pipelines.serve.reading import wait_fresh

_EVER_US = 2**62
_LONGEST_S = 1e11


def _report(call: Call, view: WorkspaceView) -> Served:
    """The report of the group that a name addresses: any member's name, or name@version.

    Of several that of the member itself, or of who reads it.
    """
    wanted = call.path["name"]
    live = {group.group.name for group in view.live()}
    groups = sorted(view.groups.values(), key=lambda group: group.group.name not in live)
    names: set[str] = set()
    for group in groups:
        runtimes = [member.runtime for member in group.members.values()]
        own = {name for runtime in runtimes for name in runtime.names}
        own |= {runtime.instance.name for runtime in runtimes}
        names |= own
        if wanted not in own:
            continue
        called = {one.instance.name for one in runtimes if wanted in (one.instance.name, *one.names)}
        found = [report for report in reports(view) if report[0] is group]
        if found:
            return min(found, key=lambda report: _distance(report[1].runtime, called))
        detail = (
            f"nobody measures the scores of '{wanted[:64]}': of a ranker [policies.quality] with its name as ranker "
            "does, of a head [policies.head_quality] with its name as head; other policies have no scores"
        )
        raise Problem("not-found", detail)
    raise Problem("not-found", f"no policy '{wanted[:64]}'{nearest(wanted[:64], names)}")


def _distance(runtime: Runtime, called: set[str]) -> int:
    """0: it is what was called; 1: it reads that, hence may measure it."""
    if runtime.instance.name in called:
        return 0
    return 1 if called & set(runtime.policy.reads) else 2


async def quality(call: Call) -> Response:
    """How good its scores were, and what the gate says of it."""
    view = call.view
    from_us, to_us = _time(call, "from", 0), _time(call, "to", _EVER_US)
    stretch_us = _stretch(call)
    group, member = _report(call, view)
    slices: Sequence[str] = member.server.slices
    slice_ = call.query.get("slice", slices[0])
    if slice_ not in slices:
        raise at("/slice", "invalid-value", f"slice is '{slice_[:40]}'{nearest(slice_[:64], slices)}")
    await wait_fresh(call, view, [group])

    def work() -> dict[str, Any]:
        group, member = _report(call, view)
        with view.reading([group]) as cut:
            measured = member.server.measured()
            by_member = [one.server.arms() for one in group.members.values() if isinstance(one.server, ArmsReport)]
        outcomes = [one for each in by_member for one in each]
        outcomes += measured.arms() if isinstance(measured, ArmsReport) else []
        limits = call.service.settings.gate
        arms = experiments(outcomes, alpha=limits.alpha, min_users=limits.min_users)
        asked: dict[str, Any] = {"from_us": from_us, "to_us": to_us, "slice_": slice_}
        series = [_shown(one) for one in measured.series(**asked, stretch_us=stretch_us)]
        whole = measured.series(**asked, stretch_us=_EVER_US) if series else []
        total = [_shown(one) | {"at": series[0]["at"]} for one in whole]
        ranking = None
        if isinstance(measured, RankedReport):
            ranking = _ranking(measured.ranked(**asked))
        told = {"arms": [_told(one) for one in arms], "version": cut.as_json()}
        return {"series": series, "total": total[0] if total else None, "slice": slice_, "ranking": ranking, **told}

    found = await call.ask(view.asked, work)
    rules = await _gate(call, view, group.group.name)
    return answer(found | {"gate": [asdict(rule) for rule in rules]})


async def _gate(call: Call, view: WorkspaceView, group: str) -> list[GateRule]:
    """What the gate says; no thread that answers waits while candidate and live are timed."""
    gate = call.service.gate
    scores = await call.ask(gate.scores, view, group)
    if scores is None:
        return []
    timed = asyncio.shield(asyncio.wrap_future(gate.costs(view, scores)))  # shared with whoever asks meanwhile
    return [*scores.rules, *await timed]


def _shown(point: QualityPoint) -> dict[str, Any]:
    at_us, *_ = point
    numbers = {name: _number(value) for name, value in point._asdict().items() if name != "at_us"}
    return {"at": rfc3339(at_us), **numbers}


def _ranking(one: Ranked) -> dict[str, Any]:
    numbers = {name: _number(value) for name, value in one._asdict().items() if name != "why"}
    return {**numbers, "why": one.why or None}


def _told(one: Experiment) -> dict[str, Any]:
    told = asdict(one)
    return {"experiment": told.pop("experiment"), "since": rfc3339(told.pop("first_us")), **told}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _stretch(call: Call) -> int:
    """How long the stretches of time are to be, at least; 0: as they are kept."""
    value = call.query.get("stretch_s")
    try:
        seconds = float(value or 0)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_S:
        raise at("/stretch_s", "invalid-value", f"stretch_s must be seconds, as 86400, not {str(value)[:40]!r}")
    return round(seconds * US)


def _time(call: Call, name: str, default: int) -> int:
    value = call.query.get(name)
    if value is None:
        return default
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise at(f"/{name}", "invalid-value", f"{name} must be a time like 2026-01-31T12:00:00Z, not {value[:40]!r}")
    return round(moment.timestamp() * US)


ENDPOINTS = [
    Endpoint(
        method="GET", path="/v1/policies/{name}/quality", run=quality, tag="operate",
        summary="How good a version's scores are, and whether it may take over", scope="query",
        params=("from", "to", "slice", "stretch_s", *READ_PARAMS), returns=examples.QUALITY, errors=(404, 422, 503),
    ),
]  # fmt: skip
