"""``dev``: fold real events with a policy that is being written, show what each one changes, again on each save."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import FAILED, USAGE, CliError, Globals

if TYPE_CHECKING:
    from streamfold.core import Event, Policy
    from streamfold.core.ledger.abc import LogRow
    from streamfold.core.testing.lab import Bench, Lab
    from streamfold.pipelines.cli.plugin_source import Plugin

HELP = """Fold events with a plugin's policy and print what each one changes; again whenever its code is saved.

Nothing is written and the running service is not touched: the fold is in memory, from empty stores.
The plugin need not be installed. --events is a file of CloudEvents, or tail:N for the newest N of the running service.

\b
Examples:
  streamfold dev dwell --events tail:1000
  streamfold dev dwell --events sample.jsonl --once
"""
_POLL_S = 0.3
_ROWS = 12
"""Changed rows shown for one event."""
_WIDTH = 100


def register(app: typer.Typer) -> None:
    app.command("dev", help=HELP)(dev)


def dev(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="PATH|NAME", help="Folder, .py file or plugin.")],
    events: Annotated[str, typer.Option(metavar="FILE|tail:N", help="What to fold.")],
    policy: Annotated[str, typer.Option(help="Which policy, where the plugin has several.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Fold once and end; exit code 1 if the fold failed.")] = False,
) -> None:
    from streamfold.pipelines.cli.plugin_source import find_plugin

    options: Globals = ctx.obj
    plugin = find_plugin(target)
    given = list(_given(options, events))
    seen = _stamps(plugin)  # taken before the code is read: a save in between is a change
    good = _attempt(options, plugin, policy, given)
    if once:
        raise typer.Exit(0 if good else FAILED)
    options.note(f"watching {', '.join(path.name for path in seen) or 'nothing'}; Ctrl-C ends it")
    try:
        while True:
            time.sleep(_POLL_S)
            now = _stamps(plugin)
            if now != seen:
                seen = now
                options.note("saved: folding afresh")
                _attempt(options, plugin, policy, given)
    except KeyboardInterrupt:
        return


# -- events -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One event as it came; ``position`` and ``recorded`` are those of the log, where it came from there."""

    line: bytes
    position: int
    recorded: str = ""


def _given(options: Globals, source: str) -> Iterator[Input]:
    if not source.startswith("tail:"):
        from streamfold.pipelines.cli.rows import read_lines

        for line in read_lines(source, type_="", mapping=None, source=""):
            if line.problem:
                raise CliError(f"{source}, line {line.number}: {line.problem}", USAGE)
            yield Input(line=line.event, position=line.number)
        return
    import json

    count = source.removeprefix("tail:")
    if not count.isdecimal() or not int(count):
        raise CliError(f"--events {source!r}: say how many of the newest events, as tail:1000", USAGE)
    with options.client() as client:
        first = max(1, client.get("/v1/status")["position"] - int(count) + 1)
        for item in client.pages("/v1/events", at_most=int(count), from_=first):
            if item["event"] is not None:  # not erased
                text = json.dumps(item["event"]).encode()
                yield Input(line=text, position=item["position"], recorded=item["recordedtime"])


def _row(lab: Lab, given: Input, acceptor: Any, now_us: int) -> LogRow:
    """Accept an event as the service would; raises ``InvalidEvent``."""
    from datetime import datetime

    from streamfold.core.errors import InvalidEvent
    from streamfold.core.events import decode_http
    from streamfold.core.events.fields import to_us
    from streamfold.core.ledger.abc import LogRow

    [raw] = decode_http("application/cloudevents+json", {}, given.line)
    if isinstance(raw, InvalidEvent):
        raise raw
    new = acceptor.accept(raw, was_logged=bool(given.recorded))
    recorded_us = to_us(datetime.fromisoformat(given.recorded)) if given.recorded else now_us
    return LogRow(given.position, recorded_us, new.type, new.body)


# -- one pass ---------------------------------------------------------------------------------------------------------
@dataclass(slots=True, kw_only=True)
class Pass:
    """What one pass over the events found."""

    policy: str
    folded: int = 0
    changed: int = 0
    skipped: int = 0
    refused: int = 0
    times_ms: list[float] = field(default_factory=list)
    bytes: int = 0
    error: str = ""

    def body(self, state: Mapping[str, Any]) -> dict[str, Any]:
        times = sorted(self.times_ms) or [0.0]
        return {
            "policy": self.policy,
            "folded": self.folded,
            "changed": self.changed,
            "skipped": self.skipped,
            "refused": self.refused,
            "ms_median": round(statistics.median(times), 4),
            "ms_max": round(times[-1], 4),
            "changed_bytes": self.bytes,
            "stores": dict(state),
            "error": self.error,
        }


def _attempt(options: Globals, plugin: Plugin, name: str, given: Sequence[Input]) -> bool:
    """Load the plugin and fold once; what goes wrong is said, and False returned."""
    from streamfold.core.errors import StreamfoldError
    from streamfold.core.testing import Case, CheckFailed, Lab
    from streamfold.pipelines.cli.plugin_source import QUICK_BACKENDS, is_builtin, policies_of

    try:
        module = plugin.load()
        kind = policies_of(plugin, module, name)[0]
        backends = QUICK_BACKENDS if is_builtin(plugin) else None
        with Lab(Case(make=kind, plugins=(module,), backends=backends)) as lab:
            return _fold(options, lab, kind, given)
    except (CliError, StreamfoldError, CheckFailed) as error:
        options.note(str(error))
    except Exception:  # a policy being written fails in every way; it is shown, and the next save tried
        options.note(traceback.format_exc(limit=-4))
    return False


def _fold(options: Globals, lab: Lab, kind: type[Policy], given: Sequence[Input]) -> bool:
    from streamfold.core.clock import SystemClock
    from streamfold.core.errors import InvalidEvent
    from streamfold.core.events import Acceptor

    bench = lab.bench()
    types = bench.context.registry.event_types
    clock = SystemClock()
    acceptor = Acceptor(types, clock)
    result = Pass(policy=kind.name)
    for one in given:
        try:
            event = types.decode(_row(lab, one, acceptor, clock.now_us()))
        except InvalidEvent as error:
            result.refused += 1
            options.note(f"position {one.position}: {error.code}: {error}")
            continue
        if event.type not in kind.handles:
            continue
        if not _one(options, bench, event, result):
            break
    stores = bench.view.by_runtime[bench.runtime.key]
    state = {name: {"rows": len(store), "bytes": store.state_bytes()} for name, store in stores.items()}
    body = result.body(state)
    options.print(_summary(body), body)
    return not result.error


def _one(options: Globals, bench: Bench, event: Event, result: Pass) -> bool:
    """Fold one event and print it; False when anything but EventError came out."""
    started = time.perf_counter()
    try:
        skipped = bench.fold(event)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        options.print(
            f"{event.seq:>9}  {event.type:<22} {event.id}  FAILED", {"position": event.seq, "error": result.error}
        )
        options.note(traceback.format_exc(limit=-4) + "Anything but EventError halts the policy.")
        return False
    took_ms = (time.perf_counter() - started) * 1000
    changes = bench.commit()
    size = sum(map(len, changes.values()))
    result.folded += 1
    result.changed += bool(changes)
    result.skipped += skipped is not None
    result.bytes += size
    result.times_ms.append(took_ms)
    lines = [text for name, data in changes.items() for text in _rows_changed(name, data)]
    body = {
        "position": event.seq, "type": event.type, "id": event.id, "ms": round(took_ms, 4), "bytes": size,
        "skipped": str(skipped) if skipped is not None else None, "changes": lines,
    }  # fmt: skip
    head = f"{event.seq:>9}  {event.type:<22} {event.id}  {took_ms:.3f} ms  {size} B"
    if skipped is not None:
        head += f"  skipped: {skipped}"
    if len(lines) > _ROWS:
        lines = [*lines[:_ROWS], f"… and {len(lines) - _ROWS} more"]
    options.print("\n".join([head, *(f"{'':>11}{line}" for line in lines)]), body)
    return True


def _rows_changed(name: str, changes: bytes) -> Iterator[str]:
    """Say each changed row of a store's changes: deleted keys, and keys with their new values."""
    from streamfold.core.codec import unpack

    gone, keys, values = unpack(changes)
    put = set(keys)
    yield from (f"- {name}[{key!r}]" for key in gone if key not in put)
    for key, value in zip(keys, values, strict=True):
        text = " ".join(repr(value).split())
        yield f"+ {name}[{key!r}] = {text if len(text) <= _WIDTH else text[: _WIDTH - 1] + '…'}"


def _summary(body: Mapping[str, Any]) -> str:
    stores = ", ".join(f"{name} {one['rows']} rows {one['bytes']:,} B" for name, one in body["stores"].items())
    failed = f"\nfailed: {body['error']}" if body["error"] else ""
    return (
        f"{body['policy']}: {body['folded']} events folded, {body['changed']} changed a store, {body['skipped']} "
        f"skipped, {body['refused']} refused; {body['ms_median']:.3f} ms per event (median; longest "
        f"{body['ms_max']:.3f}); {body['changed_bytes']:,} B of changes; {stores}{failed}"
    )


def _stamps(plugin: Plugin) -> dict[Path, tuple[int, int]]:
    """When each source file was saved, and its size."""
    found = {}
    for path in plugin.files():
        try:
            status = path.stat()
        except OSError:  # an editor is replacing it
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return found
