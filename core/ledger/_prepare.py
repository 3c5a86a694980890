"""Prepared values of events that wait for their fold, and backend results by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamfold.core.ledger._base import Base, log_rows, safe_text
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import NORMAL, LogRow, PrepareClaim

_WAITING, _DONE, _FAILED = 0, 1, 2
_TAKE = """insert into prepared (workspace, instance_id, seq, owner, claim_until_us) values (?, ?, ?, ?, ?)
    on conflict (workspace, instance_id, seq) do update
    set owner = excluded.owner, claim_until_us = excluded.claim_until_us"""


class PrepareMixin(Base):
    """Work that runs ahead of the fold, in any order and in many processes."""

    def _serialise_claims(self, tx: Tx, workspace: str, instance_id: int) -> None:
        """Make claimers of one instance wait for each other; SQLite's writers do so anyway."""

    def prepare_claim(
        self,
        workspace: str,
        instance_id: int,
        *,
        after: int,
        types: Sequence[str],
        owner: str,
        now_us: int,
        ttl_us: int,
        limit: int,
    ) -> list[PrepareClaim]:
        marks = ",".join("?" * len(types))
        find = f"""select l.seq, l.recorded_us, l.type, l.body, l.effect, l.retry_of, coalesce(p.attempts, 0)
            from log l left join prepared p on p.workspace = l.workspace and p.instance_id = ? and p.seq = l.seq
            where l.workspace = ? and l.seq > ? and l.effect = {NORMAL} and l.type in ({marks})
            and (p.seq is null or (p.state = {_WAITING} and p.claim_until_us <= ?)) order by l.seq limit ?"""

        def job(tx: Tx) -> list[PrepareClaim]:
            self._serialise_claims(tx, workspace, instance_id)
            found = tx.all(find, (instance_id, workspace, after, *types, now_us, limit))
            tx.many(_TAKE, [(workspace, instance_id, row[0], owner, now_us + ttl_us) for row in found])
            rows = log_rows([row[:-1] for row in found])
            return [PrepareClaim(row, attempts) for row, (*_, attempts) in zip(rows, found, strict=True)]

        return self._write(job, durable=False) if types and limit > 0 else []

    def prepare_take(
        self,
        workspace: str,
        instance_id: int,
        rows: Sequence[LogRow],
        *,
        owner: str,
        now_us: int,
        ttl_us: int,
        limit: int,
    ) -> list[PrepareClaim]:
        find = "select seq, state, claim_until_us, attempts from prepared where workspace = ? and instance_id = ? and "

        def job(tx: Tx) -> list[PrepareClaim]:
            self._serialise_claims(tx, workspace, instance_id)
            known = tx.among(find + "seq {in}", (workspace, instance_id), [row.seq for row in rows])
            taken = {seq for seq, state, until, _ in known if state != _WAITING or until > now_us}
            attempts = {seq: int(made) for seq, _, _, made in known}
            free = [row for row in rows if row.seq not in taken][:limit]
            tx.many(_TAKE, [(workspace, instance_id, row.seq, owner, now_us + ttl_us) for row in free])
            return [PrepareClaim(row, attempts.get(row.seq, 0)) for row in free]

        return self._write(job, durable=False) if rows and limit > 0 else []

    def prepare_save(self, workspace: str, instance_id: int, values: Mapping[int, bytes]) -> None:
        """Keep values; the first one wins, and none replaces a final failure: the fold may have used either."""
        sql = f"""insert into prepared (workspace, instance_id, seq, state, value) values (?, ?, ?, {_DONE}, ?)
            on conflict (workspace, instance_id, seq) do update
            set state = {_DONE}, value = excluded.value, owner = null, claim_until_us = 0
            where prepared.state = {_WAITING}"""
        rows = [(workspace, instance_id, seq, value) for seq, value in sorted(values.items())]
        if rows:
            self._write(lambda tx: tx.many(sql, rows), durable=False)

    def prepare_fail(self, workspace: str, instance_id: int, seq: int, *, code: str, detail: str, final: bool) -> None:
        """Count the attempt and free the claim; an attempt that died with its process is not counted."""
        sql = f"""insert into prepared (workspace, instance_id, seq, state, attempts, code, detail)
            values (?, ?, ?, ?, 1, ?, ?) on conflict (workspace, instance_id, seq) do update
            set state = excluded.state, attempts = prepared.attempts + 1, owner = null, claim_until_us = 0,
            code = excluded.code, detail = excluded.detail where prepared.state = {_WAITING}"""
        params = (workspace, instance_id, seq, _FAILED if final else _WAITING, code, safe_text(detail))
        self._write(lambda tx: tx.run(sql, params), durable=False)

    def prepare_load(
        self, workspace: str, instance_id: int, seqs: Sequence[int]
    ) -> tuple[dict[int, bytes], dict[int, tuple[str, str]]]:
        sql = f"""select seq, state, value, code, detail from prepared
            where workspace = ? and instance_id = ? and state <> {_WAITING} and seq {{in}}"""
        rows = self._read(lambda tx: tx.among(sql, (workspace, instance_id), list(seqs))) if seqs else []
        values = {seq: value for seq, state, value, _, _ in rows if state == _DONE}
        failures = {seq: (code, detail) for seq, state, _, code, detail in rows if state == _FAILED}
        return values, failures

    def prepare_drop(self, workspace: str, instance_id: int, upto: int) -> None:
        sql = "delete from prepared where workspace = ? and instance_id = ? and seq <= ?"
        self._write(lambda tx: tx.run(sql, (workspace, instance_id, upto)), durable=False)

    def results_get(self, workspace: str, backend: str, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
        sql = "select hash, value from results where workspace = ? and backend = ? and hash {in}"
        if not hashes:
            return {}
        rows = self._read(lambda tx: tx.among(sql, (workspace, backend), list(hashes)))
        return {row[0]: row[1] for row in rows}

    def results_put(self, workspace: str, backend: str, results: Mapping[bytes, bytes]) -> None:
        sql = "insert into results (workspace, backend, hash, value) values (?, ?, ?, ?) on conflict do nothing"
        rows = [(workspace, backend, h, value) for h, value in sorted(results.items())]  # one order: no deadlock
        if rows:
            self._write(lambda tx: tx.many(sql, rows), durable=False)
