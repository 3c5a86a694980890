"""The archive's lease, what a file of it says about itself, and files without what was erased."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from streamfold.core.archive.files import Reader, Writer, rewrite
from streamfold.core.clock import US
from streamfold.core.context import Context
from streamfold.core.files import file_digest
from streamfold.core.ledger.abc import Departure, Reason


@contextmanager
def archive_lease(context: Context, workspace: str) -> Iterator[int | None]:
    """Hold the right to write a workspace's archive; None: another process has it."""
    ledger = context.ledger
    epoch = ledger.archive_lease(workspace, context.owner, now_us=context.clock.now_us(), ttl_us=ttl_us(context))
    try:
        yield epoch
    finally:
        if epoch is not None:
            ledger.archive_release(workspace, epoch)


def ttl_us(context: Context) -> int:
    return int(3 * context.settings.fold.lease_s * US)


def departure_of(writer: Writer, reason: Reason, made_us: int) -> Departure:
    """Describe a file that is in its place."""
    return Departure(
        name=writer.path.name,
        reason=reason,
        first=writer.first,
        last=writer.last,
        events=writer.events,
        bytes=writer.path.stat().st_size,
        digest=file_digest(writer.path),
        types=dict(writer.types),
        made_us=made_us,
    )


def leave_out(context: Context, workspace: str, seqs: Sequence[int], epoch: int) -> dict[int, Departure | None]:
    """Write the files of the archive that hold some of these events again, without them; under the archive's lease.

    Nothing names the new files yet. What a run before this has left, which nothing names either, is deleted first.
    """
    history, ledger = context.history, context.ledger
    history.sweep(workspace, epoch)
    going, made = set(seqs), {}
    for departure in ledger.departures(workspace):
        path = history.path(workspace, departure)
        if not departure.name or not path.exists():
            continue
        if not any(departure.first <= seq <= departure.last for seq in going):
            continue
        reader = Reader(path)
        if going.isdisjoint(reader.seqs()):
            continue
        ledger.archive_renew(workspace, epoch, now_us=context.clock.now_us(), ttl_us=ttl_us(context))
        name = departure.name.rpartition("-")[0]
        writer = rewrite(reader, path.with_name(f"{name}-{epoch}.parquet"), going)
        made[departure.number] = None if writer is None else departure_of(writer, departure.reason, departure.made_us)
    return made
