"""What both ledgers share: how a method gets a transaction, and helpers of several topics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Select, insert, select

from streamfold.core.errors import LedgerError
from streamfold.core.ledger import schema as s
from streamfold.core.ledger._tx import Row, Tx
from streamfold.core.ledger.abc import DeadLetter, ErasedGroup, LogRow

T = TypeVar("T")
LOG_COLUMNS = "seq, recorded_us, type, body, effect, retry_of"
_NOTE = """insert into erasure_groups (workspace, position, grp, method, state, removed) values (?, ?, ?, ?, ?, ?)
    on conflict (workspace, position, grp) do update
    set method = excluded.method, state = excluded.state, removed = excluded.removed"""


class Base(ABC):
    """Runs functions of a ``Tx``: reads see committed state, writes are one transaction each."""

    timeline_id: str = ""

    @abstractmethod
    def _read(self, job: Callable[[Tx], T]) -> T:
        """Run a read; each of its statements sees what is committed when it starts."""

    @abstractmethod
    def _write(self, job: Callable[[Tx], T], *, durable: bool = True) -> T:
        """Run a transaction; whatever ``job`` raises rolls it back. ``job`` must not touch anything but ``Tx``.

        ``durable=False``: a power cut (never a killed process) may lose it, where the database can tell the two apart.
        """

    def _meta(self, name: str) -> str:
        return str(self._all("select value from meta where name = ?", (name,))[0][0])

    def _all(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        return self._read(lambda tx: tx.all(sql, params))

    def _select(self, query: Select[Any]) -> list[Any]:
        return self._read(lambda tx: list(tx.sa.execute(query).all()))


def log_rows(rows: Sequence[Row]) -> list[LogRow]:
    return [LogRow(*row) for row in rows]


def log_columns() -> Select[Any]:
    c = s.log.c
    return select(c.seq, c.recorded_us, c.type, c.body, c.effect, c.retry_of)


def add_dead(tx: Tx, workspace: str, dead: Sequence[DeadLetter]) -> int:
    """Keep dead letters, and remember which events which instances skipped; return how many are new skips.

    An event that was skipped before (by another generation of the same instance) has its letter already.
    """
    dead = [d for d in dead if d.policy is None or d.position is None or _add_skip(tx, workspace, d)]
    if not dead:
        return 0
    first = tx.count(workspace, "dead_letter", len(dead))
    rows = [
        {
            "workspace": workspace,
            "dead_letter_id": first + i,
            "stage": d.stage,
            "code": safe_text(d.code),
            "detail": safe_text(d.detail),
            "policy": d.policy,
            "position": d.position,
            "event_id": None if d.event_id is None else safe_text(d.event_id),
            "source": None if d.source is None else safe_text(d.source),
            "source_offset": d.offset,
            "headers": _headers(d),
            "payload": d.payload,
            "attempts": d.attempts,
            "at_us": d.at_us,
        }
        for i, d in enumerate(dead)
    ]
    tx.sa.execute(insert(s.dead_letters), rows)
    return sum(1 for d in dead if d.policy is not None and d.position is not None)


def _add_skip(tx: Tx, workspace: str, letter: DeadLetter) -> bool:
    sql = "insert into skips (workspace, policy, position) values (?, ?, ?) on conflict do nothing"
    return tx.run(sql, (workspace, letter.skipped_by or letter.policy, letter.position)) == 1


def note_groups(tx: Tx, workspace: str, notes: Sequence[ErasedGroup]) -> None:
    """Record what groups did about erasures."""
    if notes:
        tx.many(_NOTE, [(workspace, n.position, n.group, n.method, n.state, n.removed) for n in notes])


def _headers(letter: DeadLetter) -> str:
    return msgspec.json.encode({safe_text(k): safe_text(v) for k, v in letter.headers.items()}).decode()


def safe_text(value: str) -> str:
    """Make any text storable: PostgreSQL refuses NUL, and no driver encodes lone surrogates.

    A dead letter quotes what a stranger sent; it must never be the reason that a batch cannot be logged.
    """
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def no_workspace(workspace: str) -> LedgerError:
    return LedgerError(f"workspace {workspace!r} does not exist; call ensure_workspace first")
