"""Erasures in the ledger: the erased are refused at ``append``, their traces are emptied in one transaction.

An erasing event enters its subject into three places in the transaction that logs it: ``erasures`` (what is to be
done, with the subject's id until it is done), ``erased_subjects`` (a keyed hash, for good) and ``log_head.erased_us``
(the newest erasure's time). An event with a later time than that, which is nearly every event, is not looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from sqlalchemy import ColumnElement, select

from streamfold.core import crash
from streamfold.core.events.model import NewEvent, Subject
from streamfold.core.ledger import schema as s
from streamfold.core.ledger._append import ERASED_DIGEST
from streamfold.core.ledger._base import LOG_COLUMNS, Base, add_dead, log_rows, note_groups
from streamfold.core.ledger._groups import fenced
from streamfold.core.ledger._retention import replace_files
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import ERASED, DeadLetter, ErasedGroup, Erasure, Lease, LogRow, Traces

_ENDED = ("", "erased")
"""The counter of erasures that ended: of no workspace, as caches of a process are not."""
_PAGE = 200_000
"""Positions in one statement of a scan: bounds what it holds."""
_MOST_REPORTS = 1000
"""Erasures whose reports say how near a group is to the log folded afresh."""
_INSERT = """insert into erasures (workspace, position, kind, id, state, requested_us)
    values (?, ?, ?, ?, 'accepted', ?)"""
_REMEMBER = """insert into erased_subjects (workspace, hash, erased_us, position) values (?, ?, ?, ?)
    on conflict (workspace, hash) do update set position = excluded.position, erased_us =
    case when excluded.erased_us > erased_subjects.erased_us then excluded.erased_us else erased_subjects.erased_us end
    """
_SWAP = """update fold_groups set commit_no = commit_no + 1, checkpoint = ?, checkpoint_commit = commit_no + 1,
    checkpoint_watermark = ?, feed_bytes = 0, state_bytes = ?, skips = skips + ?
    where workspace = ? and grp = ? and epoch = ? and watermark = ? and commit_no = ?"""


def subject_hash(key: bytes, subject: Subject) -> bytes:
    """Return 16 bytes by which an erased subject is known; without the key they say nothing."""
    return blake2b(f"{subject.kind}\0{subject.id}".encode(), key=key, digest_size=16).digest()


@dataclass(slots=True)
class Screen:
    """What ``append`` refuses, and what its erasing events add: one batch against the erased subjects.

    Parameters
    ----------
    erased_us : ``log_head.erased_us``, read under the head's lock.
    """

    tx: Tx
    workspace: str
    key: bytes
    erased_us: int
    recorded_us: int
    _new: dict[bytes, int] = field(default_factory=dict)

    def pass_(self, events: Sequence[NewEvent], first: int) -> tuple[list[NewEvent], dict[bytes, tuple[int, bytes]]]:
        """Split events into those to log and those of erased subjects: ``{dedup: (erasure's position, no digest)}``.

        ``events`` are distinct and, where the database can say so, not known yet; an erasing one counts for those
        after it. An event passes that happened after the erasure: the subject is back.
        """
        if not any(event.erases or event.time_us <= self.erased_us for event in events):
            return list(events), {}
        known = self._known(events)
        kept: list[NewEvent] = []
        refused: dict[bytes, tuple[int, bytes]] = {}
        for event in events:
            found = [known[h] for h in self._hashes(event) if h in known]
            newest = max(found, default=None)
            if newest is not None and not event.erases and event.time_us <= newest[0]:
                refused[event.dedup] = (newest[1], ERASED_DIGEST)
                continue
            if event.erases:
                known[subject_hash(self.key, event.subject)] = (self._at_us(event), first + len(kept))
            kept.append(event)
        return kept, refused

    def _known(self, events: Sequence[NewEvent]) -> dict[bytes, tuple[int, int]]:
        asked = {h for event in events if event.time_us <= self.erased_us for h in self._hashes(event)}
        sql = "select hash, erased_us, position from erased_subjects where workspace = ? and hash {in}"
        rows = self.tx.among(sql, (self.workspace,), sorted(asked)) if asked else []
        return {hash_: (erased_us, position) for hash_, erased_us, position in rows}

    def _hashes(self, event: NewEvent) -> list[bytes]:
        return [subject_hash(self.key, subject) for subject in event.subjects]

    def _at_us(self, event: NewEvent) -> int:
        return min(event.time_us, self.recorded_us)

    def enter(self, fresh: Sequence[NewEvent], first: int, late: set[int]) -> None:
        """Enter the erasing events among those that were logged; a superseded one has no effect."""
        erasing = [(first + i, e) for i, e in enumerate(fresh) if e.erases and i not in late]
        if not erasing:
            return
        ws = self.workspace
        self.tx.many(_INSERT, [(ws, seq, e.subject.kind, e.subject.id, self.recorded_us) for seq, e in erasing])
        self.tx.many(_REMEMBER, [(ws, subject_hash(self.key, e.subject), self._at_us(e), seq) for seq, e in erasing])
        newest = max(self._at_us(e) for _, e in erasing)
        if newest > self.erased_us:
            self.tx.run("update log_head set erased_us = ? where workspace = ?", (newest, ws))


class EraseMixin(Base):
    """What is to be erased, how far it is, and the erasing itself."""

    erasure_key: bytes = b""

    def _contains(self, column: str) -> str:
        """SQL of "the bytes of a column contain ?"."""
        raise NotImplementedError

    def settle(self) -> None:
        """Have the database give up the old versions of what was changed."""
        raise NotImplementedError

    # -- what is to be done ------------------------------------------------------------------------------------
    def erasures(self, workspace: str) -> list[Erasure]:
        return self._pending(workspace, s.erasures.c.id != "")

    def unsettled(self, workspace: str) -> list[Erasure]:
        return self._pending(workspace, s.erasures.c.id == "")

    def _pending(self, workspace: str, which: ColumnElement[bool]) -> list[Erasure]:
        c = s.erasures.c
        query = select(s.erasures).where(c.workspace == workspace, c.completed_us == 0, which)
        return [_erasure(row) for row in self._select(query.order_by(c.position))]

    def erasure(self, workspace: str, position: int) -> Erasure | None:
        c = s.erasures.c
        rows = self._select(select(s.erasures).where(c.workspace == workspace, c.position == position))
        return _erasure(rows[0]) if rows else None

    def erasing_workspaces(self) -> list[str]:
        return [row[0] for row in self._all("select distinct workspace from erasures where completed_us = 0")]

    def erased_since(self, workspace: str, at_us: int) -> bool:
        sql = "select 1 from erasures where workspace = ? and (completed_us = 0 or completed_us >= ?) limit 1"
        return bool(self._all(sql, (workspace, at_us)))

    def erased_groups(self, workspace: str, position: int) -> list[ErasedGroup]:
        sql = """select position, grp, method, state, removed from erasure_groups
            where workspace = ? and position = ? order by grp"""
        return [ErasedGroup(*row) for row in self._all(sql, (workspace, position))]

    def unforgotten(self, workspace: str) -> list[tuple[str, str, str]]:
        sql = """select e.kind, e.id, g.grp from erasures e join erasure_groups g
            on g.workspace = e.workspace and g.position = e.position
            where e.workspace = ? and e.completed_us = 0 and g.state = 'rebuild'"""
        return [(kind, id_, group) for kind, id_, group in self._all(sql, (workspace,))]

    def set_hidden(self, workspace: str, position: int, at_us: int) -> None:
        sql = """update erasures set hidden_us = ?, state = 'hidden'
            where workspace = ? and position = ? and hidden_us = 0"""
        self._write(lambda tx: tx.run(sql, (at_us, workspace, position)))

    def note_groups(self, workspace: str, notes: Sequence[ErasedGroup]) -> None:
        self._write(lambda tx: note_groups(tx, workspace, notes))

    # -- the subject's events ----------------------------------------------------------------------------------
    def scan(
        self, workspace: str, upto: int, subjects: Sequence[Subject], patterns: Sequence[bytes]
    ) -> Iterator[LogRow]:
        main = ["(subject_kind = ? and subject_id = ?)"] * len(subjects)
        where = " or ".join([*main, *[self._contains("body")] * len(patterns)])
        sql = f"""select {LOG_COLUMNS} from log where workspace = ? and seq > ? and seq <= ? and effect <> {ERASED}
            and ({where}) order by seq"""
        more = [part for subject in subjects for part in (subject.kind, subject.id)] + list(patterns)
        for after in range(0, upto, _PAGE):
            yield from log_rows(self._all(sql, (workspace, after, min(upto, after + _PAGE), *more)))

    def set_found(self, workspace: str, found: dict[int, list[int]]) -> None:
        sql = "update erasures set found = ? where workspace = ? and position = ? and found is null"
        rows = [(np.array(seqs, np.int64).tobytes(), workspace, position) for position, seqs in found.items()]
        self._write(lambda tx: tx.many(sql, rows))

    # -- a group's state ---------------------------------------------------------------------------------------
    def swap_state(
        self,
        workspace: str,
        lease: Lease,
        *,
        checkpoint: str,
        state_bytes: int,
        dead: Sequence[DeadLetter],
        done: Sequence[ErasedGroup],
    ) -> None:
        at = (workspace, lease.group)

        def job(tx: Tx) -> None:
            skips = sum(1 for d in dead if d.policy is not None and d.position is not None)
            cas = (*at, lease.epoch, lease.watermark, lease.commit_no)
            if tx.run(_SWAP, (checkpoint, lease.watermark, state_bytes, skips, *cas)) != 1:
                raise fenced(workspace, lease)
            tx.run("delete from commits where workspace = ? and grp = ?", at)
            add_dead(tx, workspace, dead)
            note_groups(tx, workspace, done)
            crash.point("erase.swap.in")

        self._write(job)

    # -- the traces --------------------------------------------------------------------------------------------
    def scrub(self, workspace: str, position: int, traces: Traces, report: str) -> dict[str, int] | None:
        def job(tx: Tx) -> dict[str, int] | None:
            tx.count(workspace, "instance", 0)  # nobody pins an instance meanwhile: it would fold what goes
            if tx.one(_WAITED_FOR, (position, workspace, position)) is not None:
                return None
            replace_files(tx, workspace, traces)
            removed = _empty_log(tx, workspace, traces)
            removed |= _delete(tx, workspace, traces)
            tx.run(
                "update erasures set state = 'scrubbed', report = ? where workspace = ? and position = ?",
                (report, workspace, position),
            )
            crash.point("erase.scrub.in")
            return removed

        return self._write(job)

    def empty_erasure(self, workspace: str, position: int, report: str, *, freed: int) -> None:
        done = """update erasures set state = 'settling', report = ?, id = '', found = null
            where workspace = ? and position = ?"""

        def job(tx: Tx) -> None:
            tx.run("update log_head set bytes = bytes - ? where workspace = ?", (freed, workspace))
            tx.run(_EMPTY, (b"", workspace, position))
            tx.run("delete from deletions where workspace = ? and seq = ?", (workspace, position))
            tx.run(done, (report, workspace, position))
            crash.point("erase.finish.in")

        self._write(job)

    def end_erasure(self, workspace: str, position: int, state: str, at_us: int) -> None:
        def job(tx: Tx) -> None:
            sql = "update erasures set state = ?, completed_us = ? where workspace = ? and position = ?"
            tx.run(sql, (state, at_us, workspace, position))
            tx.count(*_ENDED)

        self._write(job)

    def erasures_ended(self) -> int:
        rows = self._all("select value from counters where workspace = ? and name = ?", _ENDED)
        return int(rows[0][0]) if rows else 0

    def note_deltas(self, workspace: str, group: str, upto: int, deltas: Mapping[str, str], *, over_by_us: int) -> None:
        def job(tx: Tx) -> None:
            found = tx.all(_REPORTS, (workspace, group, upto, over_by_us, _MOST_REPORTS))
            rows = []
            for position in sorted(position for (position,) in found):
                [(text,)] = tx.all(_LOCK_REPORT, (workspace, position))  # another group's delta waits for this one's
                report = json.loads(text or "{}")
                report.setdefault("deltas", {})[group] = {name: json.loads(one) for name, one in deltas.items()}
                rows.append((json.dumps(report, sort_keys=True), workspace, position))
            tx.many("update erasures set report = ? where workspace = ? and position = ?", rows)

        self._write(job)


_LOCK_REPORT = "update erasures set report = report where workspace = ? and position = ? returning report"
_REPORTS = """select e.position from erasures e join erasure_groups g
    on g.workspace = e.workspace and g.position = e.position
    where e.workspace = ? and g.grp = ? and e.position <= ? and e.completed_us > 0 and e.completed_us <= ?
    order by e.position desc limit ?"""
_EMPTY = f"""update log set effect = {ERASED}, body = ?, subject_kind = '', subject_id = ''
    where workspace = ? and seq = ?"""
# Also where the id was forgotten since (``prune_dedup``): an erased event is to have no effect however late it comes.
_KEEP_OUT = """insert into dedup (workspace, dedup, seq, digest, recorded_us) values (?, ?, ?, ?, 0)
    on conflict (workspace, dedup) do update set digest = excluded.digest"""
# A retired group was reset: it holds nothing, and folds nothing.
_WAITED_FOR = """select f.grp from fold_groups f left join erasure_groups g
    on g.workspace = f.workspace and g.grp = f.grp and g.position = ?
    where f.workspace = ? and (g.state is null or g.state <> 'done' or (f.watermark < ? and exists (
        select 1 from instances i where i.workspace = f.workspace and i.grp = f.grp and i.slot <> 'retired')))
    limit 1"""


def _empty_log(tx: Tx, workspace: str, traces: Traces) -> dict[str, int]:
    """Empty the events' rows; their positions and the keys of their ids stay, so that nothing comes in again."""
    tx.many(_EMPTY, [(b"", workspace, seq) for seq in traces.seqs])
    tx.many(_KEEP_OUT, [(workspace, dedup, seq, ERASED_DIGEST) for dedup, seq in traces.dedups])
    return {"events": len(traces.seqs)}


def _delete(tx: Tx, workspace: str, traces: Traces) -> dict[str, int]:
    def each(sql: str, rows: Sequence[Sequence[object]]) -> int:
        return sum(tx.run(sql, row) for row in rows)

    subject = traces.subject
    instances = [row[0] for row in tx.all("select instance_id from instances where workspace = ?", (workspace,))]
    prepared = [(workspace, instance, seq) for instance in instances for seq in traces.seqs]
    tx.many("delete from prepared where workspace = ? and instance_id = ? and seq = ?", prepared)
    tx.many("delete from skips where workspace = ? and position = ?", [(workspace, seq) for seq in traces.seqs])
    tx.many("delete from deletions where workspace = ? and seq = ?", [(workspace, seq) for seq in traces.seqs])
    key = (workspace, subject.kind, subject.id)
    return {
        "results": each(
            "delete from results where workspace = ? and backend = ? and hash = ?",
            [(workspace, *result) for result in traces.results],
        ),
        "dead_letters": each(
            "delete from dead_letters where workspace = ? and dead_letter_id = ?",
            [(workspace, letter) for letter in traces.letters],
        ),
        "sequences": each("delete from sequences where workspace = ? and kind = ? and id = ?", [key]),
    }


def _erasure(row: object) -> Erasure:
    values = row._asdict()  # type: ignore[attr-defined]  # a row of SQLAlchemy
    found = values.pop("found")
    values.pop("workspace")
    seqs = None if found is None else np.frombuffer(found, np.int64).tolist()
    return Erasure(subject=Subject(values.pop("kind"), values.pop("id")), found=seqs, **values)
