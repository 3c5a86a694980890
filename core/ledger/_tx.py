"""One open transaction, as the ledger's statements see it: the same SQL text for both databases.

Statements are written once with ``?`` and ``{in}``; a ``Tx`` turns them into what its driver wants. Hot statements go
to the driver's connection (SQLAlchemy costs two to four times as much per row), cold ones through ``sa``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

Row = tuple[Any, ...]
CHUNK = 1000
"""Values in one ``in (…)`` on SQLite: few enough statements to cache, far below its limit of 32,766."""


class Tx(ABC):
    """A transaction (or, for reads, a connection in autocommit mode)."""

    __slots__ = ("raw", "sa")

    def __init__(self, sa: Connection) -> None:
        self.sa = sa
        self.raw: Any = sa.connection.driver_connection

    @abstractmethod
    def all(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a statement."""

    @abstractmethod
    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed."""

    @abstractmethod
    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row of parameters."""

    @abstractmethod
    def among(self, sql: str, params: Sequence[Any], values: Sequence[Any]) -> list[Row]:
        """Return the rows of a statement whose ``{in}`` stands for membership in ``values``; it must come last."""

    def one(self, sql: str, params: Sequence[Any] = ()) -> Row | None:
        """Return the first row, or None."""
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def count(self, workspace: str, name: str, n: int = 1) -> int:
        """Take ``n`` numbers of a workspace's counter; return the first. Never gives a number again."""
        row = self.one(
            "insert into counters (workspace, name, value) values (?, ?, ?) "
            "on conflict (workspace, name) do update set value = counters.value + excluded.value returning value",
            (workspace, name, n),
        )
        assert row is not None
        return int(row[0]) - n + 1


class SqliteTx(Tx):
    """On ``sqlite3``: many rows by ``executemany`` (a prepared statement, no round trips)."""

    __slots__ = ()

    def all(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        rows: list[Row] = self.raw.execute(sql, params).fetchall()
        return rows

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        return int(self.raw.execute(sql, params).rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self.raw.executemany(sql, rows)

    def among(self, sql: str, params: Sequence[Any], values: Sequence[Any]) -> list[Row]:
        rows: list[Row] = []
        for i in range(0, len(values), CHUNK):
            part = values[i : i + CHUNK]
            rows += self.raw.execute(_marks(sql, len(part)), (*params, *part)).fetchall()
        return rows


class PostgresTx(Tx):
    """On ``psycopg``: results in binary form, membership as an array."""

    __slots__ = ()

    def all(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        rows: list[Row] = self.raw.execute(_percent(sql), params, binary=True).fetchall()
        return rows

    def run(self, sql: str, params: Sequence[Any] = ()) -> int:
        return int(self.raw.execute(_percent(sql), params).rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            with self.raw.cursor() as cursor:
                cursor.executemany(_percent(sql), rows)

    def among(self, sql: str, params: Sequence[Any], values: Sequence[Any]) -> list[Row]:
        if not values:
            return []
        return self.all(sql.replace("{in}", "= any(?)"), (*params, list(values)))


@lru_cache(maxsize=512)
def _percent(sql: str) -> str:
    return sql.replace("?", "%s")


@lru_cache(maxsize=64)
def _marks(sql: str, n: int) -> str:
    return sql.replace("{in}", f"in ({','.join('?' * n)})")
