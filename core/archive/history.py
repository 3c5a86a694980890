"""The log as it once was: what is in it still, together with what has left it for the archive.

Folds read this instead of the log alone, so that a version that begins at the start, a rebuild and ``verify`` see every
event. Up to ``log_head.left_upto`` the log has holes; past it, which is where folds usually are, the archive is not
looked at. An event may be in both (it was written, and is not deleted yet): it is one event.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal
from urllib.parse import quote

from streamfold.core.archive.files import PART, Reader
from streamfold.core.caches import emptied_on_erasure
from streamfold.core.errors import ArchiveMissing
from streamfold.core.events.model import Subject
from streamfold.core.files import file_digest
from streamfold.core.ledger.abc import Departure, Ledger, LogPage, LogRow, matching

_READERS, _GROUPS = 32, 8
"""Open files and decoded row groups that are kept."""


Lack = Literal["nothing", "compacted", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What folding afresh would give: all of it (``exact``), the same from fewer events (``compacted``), or not the
    same any more (``impossible``), and the position from which every event that is needed is still there."""

    rebuild: Literal["exact", "compacted", "impossible"]
    rebuildable_from: int


class History:
    """A ledger's log and archive, read as one.

    Parameters
    ----------
    root : the archive's folder; below it one per timeline, so that a restored ledger has an archive of its own.
    """

    def __init__(self, ledger: Ledger, root: str) -> None:
        self._ledger = ledger
        self.root = Path(root)
        self._lock = Lock()
        self._readers: OrderedDict[Path, Reader] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int], list[LogRow]] = OrderedDict()
        emptied_on_erasure(self._forget)

    def _forget(self) -> None:
        with self._lock:
            self._groups.clear()
            self._readers.clear()  # an open file keeps what was in it before it was written anew

    @property
    def home(self) -> Path:
        """Where the files of this timeline are."""
        return self.root / self._ledger.timeline_id

    def folder(self, workspace: str) -> Path:
        return self.home / quote(workspace, safe="")

    def path(self, workspace: str, departure: Departure) -> Path:
        return self.folder(workspace) / departure.name

    # -- reading --------------------------------------------------------------------------------------------------
    def follow(
        self,
        workspace: str,
        after: int,
        limit: int,
        *,
        upto: int | None = None,
        types: Sequence[str] | None = None,
        may_lack: Lack = "nothing",
    ) -> LogPage:
        """Read on from a group's watermark, or past it: what is there does not leave before the group has folded it.

        ``may_lack``: what is passed over where the archive does not have it any more; otherwise ``ArchiveMissing``.
        """
        page = self._ledger.read(workspace, after, limit, upto=upto, types=types)
        return page if page.left_upto <= after else self._merged(workspace, after, limit, upto, types, page, may_lack)

    def read(
        self,
        workspace: str,
        after: int,
        limit: int,
        *,
        upto: int | None = None,
        types: Sequence[str] | None = None,
        may_lack: Lack = "nothing",
    ) -> LogPage:
        """Read from any position, whatever leaves meanwhile; otherwise as ``follow``."""
        page = self._ledger.read(workspace, after, limit, upto=upto, types=types)
        if page.left_upto <= after and self._ledger.left_upto(workspace) <= after:
            return page
        return self._merged(workspace, after, limit, upto, types, page, may_lack)

    def _merged(
        self,
        workspace: str,
        after: int,
        limit: int,
        upto: int | None,
        types: Sequence[str] | None,
        page: LogPage,
        may_lack: Lack,
    ) -> LogPage:
        """Put together what the log had with the archive, which was written before anything was deleted."""
        if types is not None and not types:
            return page
        last = page.rows[-1].seq if len(page.rows) == limit else page.head if upto is None else min(page.head, upto)
        wanted = None if types is None else frozenset(types)
        archived = self._archived(workspace, after, last, wanted, may_lack)
        rows = list(_first(heapq.merge(page.rows, *archived, key=_seq), limit))
        return LogPage(page.head, rows, page.left_upto)

    def _archived(
        self, workspace: str, after: int, upto: int, types: frozenset[str] | None, may_lack: Lack
    ) -> list[Iterator[LogRow]]:
        found = []
        for departure in self._ledger.departures(workspace):
            asked = departure.last > after and departure.first <= upto
            if not asked or (types is not None and types.isdisjoint(departure.types)):
                continue
            reader = self._reader(workspace, departure) if departure.name else None
            if reader is not None:
                found.append(self._range(reader, after, upto, types))
            elif may_lack == "nothing" or (may_lack == "compacted" and departure.reason == "expired"):
                raise ArchiveMissing(_missing(self.path(workspace, departure) if departure.name else None, departure))
        return found

    def _range(self, reader: Reader, after: int, upto: int, types: frozenset[str] | None) -> Iterator[LogRow]:
        for number in reader.groups(after, upto):
            for row in self._group(reader, number):
                if after < row.seq <= upto and (types is None or row.type in types):
                    yield row

    def _group(self, reader: Reader, number: int) -> list[LogRow]:
        key = (reader.path, number)
        with self._lock:
            rows = self._groups.pop(key, None)
            if rows is None:
                rows = reader.rows(number)
            self._groups[key] = rows  # the newest comes last
            while len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
            return rows

    def _reader(self, workspace: str, departure: Departure) -> Reader | None:
        """Return a file's reader; None when the file is gone."""
        path = self.path(workspace, departure)
        with self._lock:
            if not path.exists():
                self._readers.pop(path, None)
                return None
            if path not in self._readers:
                if file_digest(path) != departure.digest:
                    raise ArchiveMissing(f"{path} is cut or was changed: put the file back as it was written")
                self._readers[path] = Reader(path)
            self._readers.move_to_end(path)
            while len(self._readers) > _READERS:
                self._readers.popitem(last=False)
            return self._readers[path]

    def rows(self, workspace: str, seqs: Sequence[int]) -> list[LogRow]:
        """Return the events at these positions, those that there are, in order."""
        found = {row.seq: row for row in self._ledger.rows(workspace, seqs)}
        left = sorted(set(seqs) - found.keys())
        if left and left[0] <= self._ledger.left_upto(workspace):
            for rows in self._archived(workspace, left[0] - 1, left[-1], None, "all"):
                wanted = set(left)
                found |= {row.seq: row for row in rows if row.seq in wanted}
        return [found[seq] for seq in sorted(found)]

    def find(self, workspace: str, event_id: str, source: str | None = None) -> list[LogRow]:
        """Return the events with this id, newest first, while the de-duplication knows it."""
        return matching(self.rows(workspace, self._ledger.find_seqs(workspace, event_id)), event_id, source)

    def scan(
        self, workspace: str, upto: int, subjects: Sequence[Subject], patterns: Sequence[bytes]
    ) -> Iterator[LogRow]:
        """As ``Ledger.scan``, through the archive too; what is gone is passed over."""
        archived = list(self.scan_archive(workspace, upto, subjects, patterns))
        log = self._ledger.scan(workspace, upto, subjects, patterns)
        yield from _first(heapq.merge(log, archived, key=_seq), None)

    def scan_archive(
        self, workspace: str, upto: int, subjects: Sequence[Subject], patterns: Sequence[bytes]
    ) -> list[LogRow]:
        """As ``scan``, through the archive alone."""
        found: dict[int, LogRow] = {}
        for departure in self._ledger.departures(workspace):
            if departure.first <= upto and self._is_there(workspace, departure):
                rows = Reader(self.path(workspace, departure)).matching(subjects, patterns)  # its own: read unlocked
                found |= {row.seq: row for row in rows if row.seq <= upto and row.body}
        return [found[seq] for seq in sorted(found)]

    def newest_seq(
        self, workspace: str, kind: str, subject_id: str, after: int, *, type: str | None = None
    ) -> int | None:
        """Position of the newest event of a main subject past ``after``, perhaps of one type alone; that of what is
        gone, as it may be one."""
        newest = self._ledger.newest_seq(workspace, kind, subject_id, after, type=type)
        if newest is not None or self._ledger.left_upto(workspace) <= after:
            return newest
        gone = [
            d.last for d in self._ledger.departures(workspace) if d.last > after and not self._is_there(workspace, d)
        ]
        subject = Subject(kind, subject_id)
        rows = self.scan_archive(workspace, 2**63 - 1, [subject], [])
        of_type = [row.seq for row in rows if row.seq > after and type in (None, row.type)]
        return max([*gone, *of_type], default=None)

    # -- what is gone ---------------------------------------------------------------------------------------------
    def reach(self, workspace: str, handles: Collection[str], start_seq: int, *, newest_suffices: bool) -> Reach:
        """Say what folding these types afresh from ``start_seq`` would give."""
        gone, compacted = start_seq, False
        if self._ledger.left_upto(workspace) <= start_seq:
            return Reach(rebuild="exact", rebuildable_from=start_seq)
        for departure in self._ledger.departures(workspace):
            last = max((last for type_, (_, last) in departure.types.items() if type_ in handles), default=0)
            if last <= start_seq or self._is_there(workspace, departure):
                continue
            if departure.reason == "compacted" and newest_suffices:
                compacted = True
            else:
                gone = max(gone, last)
        if gone > start_seq:
            return Reach(rebuild="impossible", rebuildable_from=gone)
        return Reach(rebuild="compacted" if compacted else "exact", rebuildable_from=start_seq)

    def missing(self, workspace: str) -> list[str]:
        """Names of files that should be there."""
        return [d.name for d in self._ledger.departures(workspace) if d.name and not self._is_there(workspace, d)]

    def _is_there(self, workspace: str, departure: Departure) -> bool:
        return bool(departure.name) and self.path(workspace, departure).exists()

    def count(self, workspace: str, types: Collection[str], after: int) -> int:
        """About how many events of these types past a position are in the archive."""
        found = 0
        for departure in self._ledger.departures(workspace):
            if departure.last > after and departure.cleared and self._is_there(workspace, departure):
                found += sum(count for type_, (count, _) in departure.types.items() if type_ in types)
        return found

    # -- files ----------------------------------------------------------------------------------------------------
    def sweep(self, workspace: str, epoch: int) -> list[str]:
        """Delete what no departure names and no later holder of the archive's lease can have written; returns what."""
        folder = self.folder(workspace)
        if not folder.is_dir():
            return []
        names = sorted(file.name for file in folder.iterdir())
        known = {departure.name for departure in self._ledger.departures(workspace)}
        gone = []
        for name in names:
            written = name.removesuffix(PART).removesuffix(".parquet").rpartition("-")[2]
            if name not in known and written.isdecimal() and int(written) <= epoch:
                (folder / name).unlink(missing_ok=True)
                gone.append(name)
        with self._lock:
            for path in [path for path in self._readers if path.name in gone]:
                del self._readers[path]
            for key in [key for key in self._groups if key[0].name in gone]:
                del self._groups[key]
        return gone


def file_name(first: int, epoch: int) -> str:
    """Return a file's name: its first position, and the epoch of the lease under which it was written."""
    return f"{first:020d}-{epoch}.parquet"


def _seq(row: LogRow) -> int:
    return row.seq


def _first(rows: Iterable[LogRow], limit: int | None) -> Iterator[LogRow]:
    """Yield the first rows, each position once."""
    before = 0
    for row in rows:
        if row.seq != before:
            if limit is not None:
                if not limit:
                    return
                limit -= 1
            before = row.seq
            yield row


def _missing(path: Path | None, departure: Departure) -> str:
    what = f"events up to position {departure.last} have left the log"
    if path is None:
        return f"{what} without an archive: they cannot be folded again"
    return f"{what} for {path}, which is not there: put it back, or these events cannot be folded again"
