"""``policies quality``: how good a version's scores were over time, what the gate says of it, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import USAGE, CliError, Globals, console, plain

HELP = """Show how good a policy's scores were, by stretch of time, and whether the gate would let it take over.

Of live A/Bs it tells what each arm led to.

NAME is any member of a group that a `quality` or `head_quality` policy measures, or a head that is a function of its
rows; NAME@VERSION for a shadow, as `policies list` shows it.

\b
Examples:
  streamfold policies quality ensemble
  streamfold policies quality ensemble --slice new_user --plot ensemble.svg
  streamfold policies quality label_statistics@1-5f0c --json
"""
TITLES = {
    "auc": "AUC", "user_auc": "per-user AUC", "logloss": "log loss", "ndcg_at_10": "NDCG@10",
    "accuracy": "accuracy", "min_accuracy": "worst class", "forgetting": "forgetting",
    "calibration_error": "calibration", "catalogue_ndcg_at_10": "NDCG@10 of all", "coverage": "coverage",
}  # fmt: skip
_POINTS = 60
_LENGTHS_S = (*(hours * 3600 for hours in (1, 3, 6, 12)), *(days * 86_400 for days in (1, 2, 7, 30, 91, 365)))
_DRAWN = (
    ("auc", "logloss", "calibration_error", "catalogue_ndcg_at_10", "coverage"),
    ("accuracy", "logloss", "min_accuracy"),
)


_NO_GATE = "gate: nothing to compare: this is what is live, or nobody measures what is; ask for a shadow: NAME@VERSION"


def register(group: typer.Typer) -> None:
    group.command("quality", help=HELP)(quality)


def quality(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    slice_: Annotated[str, typer.Option("--slice", help="As new_user, item_decile_1, or a head; all by default.")] = "",
    from_: Annotated[str, typer.Option("--from", metavar="TIME", help="As 2026-01-31T12:00:00Z.")] = "",
    to: Annotated[str, typer.Option(metavar="TIME", help="Before this time.")] = "",
    stretch_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds in a stretch of time, as 86400. [default: of the table as kept, an "
            "hour; of the plot whatever gives it at most 60]",
            show_default=False,
        ),
    ] = 0.0,
    last: Annotated[int, typer.Option(min=1, help="Stretches of time in the table, the newest.")] = 24,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw all stretches of time.")] = None,
) -> None:
    from streamfold.pipelines.cli.client import segment
    from streamfold.pipelines.cli.evaluate import check_plot, write_plot

    options: Globals = ctx.obj
    check_plot(plot)
    given = {"slice": slice_, "from": from_, "to": to, "stretch_s": stretch_s}
    with options.client() as client:
        asked = {key: value for key, value in given.items() if value}
        path = f"/v1/policies/{segment(name)}/quality"
        body = client.get(path, **asked)
        drawn = series = body["series"]
        if plot is not None and not stretch_s and (longer := _readable(series)):
            drawn = client.get(path, **asked, stretch_s=longer)["series"]
    if plot is not None:
        from streamfold.pipelines.evaluate.plot import draw_series

        if not drawn:
            raise CliError(f"nothing of {name} was measured yet: there is nothing to draw", USAGE)
        write_plot(plot, draw_series(name, drawn, {one: TITLES[one] for one in _drawn(drawn)}))
        options.note(f"drawn: {plot}")
    if options.json:
        options.print("", body)
        return
    out = console()
    table = _series(name, series[-last:], body.get("total"), body["slice"]) if series else ""
    out.print(table or f"{name}: nothing was measured yet")
    if len(series) > last:
        out.print(f"{len(series) - last} earlier ones: --last, --json")
    if body["ranking"] is not None:
        out.print(_ranking(body["ranking"]))
    for one in body["arms"]:
        out.print(_arms(one))
    out.print(_gate(body["gate"]) if body["gate"] else _NO_GATE)


def _drawn(series: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    drawn = _DRAWN[any(one["accuracy"] is not None for one in series)]
    return drawn[:3] + tuple(key for key in drawn[3:] if any(one[key] is not None for one in series))


def _readable(series: Sequence[Mapping[str, Any]]) -> int:
    """Seconds that a stretch must have for a plot of at most ``_POINTS``; 0: as they are."""
    if len(series) <= _POINTS:
        return 0
    at_s = [datetime.fromisoformat(one["at"]).timestamp() for one in series]
    return next((s for s in _LENGTHS_S if len({at // s for at in at_s}) <= _POINTS), _LENGTHS_S[-1])


def _series(name: str, series: Sequence[Mapping[str, Any]], total: Mapping[str, Any] | None, slice_: str) -> Any:
    """One row a stretch of time, with the measures that there are, and one of all that was asked for."""
    from rich.table import Table

    rows = [*series, total] if total else series
    there = [key for key in TITLES if any(one.get(key) is not None for one in rows)]
    table = Table("from", "events", *(TITLES[key] for key in there), title=plain(f"{name}, {slice_}"))
    for one in rows:
        cells = ("–" if one[key] is None else f"{one[key]:.4f}" for key in there)
        at = "all the time" if one is total else one["at"][:16].replace("T", " ")
        table.add_row(at, f"{one['events']:,}", *cells, end_section=one is series[-1])
    return table


def _arms(told: Mapping[str, Any]) -> Any:
    """What the two arms of a live A/B led to."""
    from rich.table import Table

    title = f"live A/B {told['experiment']}, {told['share']:g} of the users to the candidate: {told['verdict']}"
    losses = told["measure"] == "right"
    names = ("answers", "labelled", "right") if losses else ("exposures", "liked")
    table = Table("arm", "users", "counted", *names, "rate", "bounds", *(("log loss",) if losses else ()), title=title)
    for name in ("live", "candidate"):
        one = told[name]
        counts = [one[key] for key in ("users", "counted", "exposures", *(("labelled",) if losses else ()), "liked")]
        loss = one["logloss"]
        more = ("–" if loss is None else f"{loss['mean']:.4f}",) if losses else ()
        table.add_row(name, *(f"{count:,}" for count in counts), *_bounded(one["rate"], one), *more)
    loss = told["logloss"]
    more = ("–" if loss is None else f"{loss['mean']:+.4f}",) if losses else ()
    table.add_row("difference", *[""] * (len(names) + 2), *_bounded(told["difference"], told), *more)
    return table


def _bounded(value: float | None, one: Mapping[str, Any]) -> tuple[str, str]:
    return ("–", "–") if value is None else (f"{value:.4f}", f"{one['lower']:.4f}…{one['upper']:.4f}")


def _ranking(found: Mapping[str, Any]) -> str:
    """What stands behind the measures over the whole catalogue, and why there are none."""
    said = "among everything unseen: "
    if found["lists"] or found["positives"]:
        numbers = (found["ndcg_at_10"], found["coverage"])
        ndcg, coverage = ("–" if one is None else f"{one:.4f}" for one in numbers)
        said += f"NDCG@10 {ndcg} of {found['positives']:,} liked items; coverage {coverage} "
        said += f"of {found['items']:,} items by {found['lists']:,} rankings"
        return said if found["why"] is None else f"{said}; no more now: {plain(found['why'])}"
    return f"{said}nothing ranked: {plain(found['why'] or 'not in these times')}"


def _gate(rules: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("gate", "verdict", "value", "limit", "", title=_verdict(rules))
    for rule in rules:
        verdict = "pass" if rule["passed"] else "undecided" if rule.get("undecided") else "refused"
        numbers = ("–" if rule[key] is None else f"{rule[key]:.4g}" for key in ("value", "limit"))
        table.add_row(rule["rule"], verdict, *numbers, plain(rule["detail"]))
    return table


def _verdict(rules: Sequence[Mapping[str, Any]]) -> str:
    failed = [rule["rule"] for rule in rules if not rule["passed"]]
    if failed and all(rule.get("undecided") for rule in rules if not rule["passed"]):
        return f"the gate has not decided: {', '.join(failed)}"
    return f"the gate refuses it: {', '.join(failed)}" if failed else "the gate lets it take over"
