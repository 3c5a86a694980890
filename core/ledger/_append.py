"""Parts of ``append`` that both databases share: outcomes, intakes, sequences, deletions."""

from __future__ import annotations

from collections.abc import Sequence

from streamfold.core.errors import IntakeConflict
from streamfold.core.events.model import NewEvent
from streamfold.core.ledger._alerts import add_alerts
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import SUPERSEDED, IntakeMove, Outcome

ERASED_DIGEST = b""
"""An erasure empties the digest of the event's ``dedup`` row: the keyed id stays, nothing of its content does."""


def distinct(events: Sequence[NewEvent]) -> list[NewEvent]:
    """Return the first event of each ``dedup`` in the batch, in order."""
    firsts: dict[bytes, NewEvent] = {}
    for event in events:
        firsts.setdefault(event.dedup, event)
    return list(firsts.values())


def outcomes(
    events: Sequence[NewEvent], known: dict[bytes, tuple[int, bytes]], first: int
) -> tuple[list[Outcome], list[int]]:
    """Return the outcome and the position of each event; those that are not ``known`` got positions from ``first`` on.

    ``known`` learns them on the way, so that a repetition within the batch is judged like one of an earlier batch.
    """
    result: list[Outcome] = []
    positions: list[int] = []
    for event in events:
        before = known.get(event.dedup)
        if before is None:
            known[event.dedup] = (first, event.digest)
            result.append("accepted")
            positions.append(first)
            first += 1
            continue
        seq, digest = before
        result.append("erased" if digest == ERASED_DIGEST else "duplicate" if digest == event.digest else "reused")
        positions.append(seq)
    return result, positions


def superseded(tx: Tx, workspace: str, fresh: Sequence[NewEvent]) -> set[int]:
    """Return indices of events whose ``sequence`` is not above the stored one; move the stored ones on."""
    late: set[int] = set()
    newest: dict[tuple[str, str, str], int] = {}
    for i, event in enumerate(fresh):
        if event.sequence is None:
            continue
        key = (event.source, event.subject.kind, event.subject.id)
        if key not in newest:
            row = tx.one(
                "select sequence from sequences where workspace = ? and source = ? and kind = ? and id = ?",
                (workspace, *key),
            )
            newest[key] = row[0] if row else event.sequence - 1
        if event.sequence <= newest[key]:
            late.add(i)
        else:
            newest[key] = event.sequence
    if newest:
        tx.many(
            "insert into sequences (workspace, source, kind, id, sequence) values (?, ?, ?, ?, ?) "
            "on conflict (workspace, source, kind, id) do update set sequence = excluded.sequence",
            [(workspace, *key, value) for key, value in newest.items()],
        )
    return late


def mark_superseded(tx: Tx, workspace: str, seqs: Sequence[int]) -> None:
    tx.many(f"update log set effect = {SUPERSEDED} where workspace = ? and seq = ?", [(workspace, q) for q in seqs])


def index_deletions(tx: Tx, workspace: str, fresh: Sequence[NewEvent], first: int, late: set[int]) -> None:
    """Index deletions, so that views hide their subjects at once; a superseded deletion has no effect."""
    rows = [
        (workspace, first + i, event.subject.kind, event.subject.id)
        for i, event in enumerate(fresh)
        if event.deletes and i not in late
    ]
    if rows:
        tx.many("insert into deletions (workspace, seq, kind, id) values (?, ?, ?, ?)", rows)


def move_intakes(
    tx: Tx, workspace: str, moves: Sequence[IntakeMove], result: Sequence[Outcome], recorded_us: int
) -> None:
    """Compare-and-set each intake's offset, add its counters and keep its alert; in the order of their names, against
    deadlocks."""
    for move, accepted, duplicates, reused in sorted(_shares(moves, result), key=lambda share: share[0].intake):
        counters = (accepted, move.duplicates + duplicates, move.rejected + reused)
        if move.expect is None:
            done = tx.run(
                "insert into intakes (workspace, intake, topic, next_offset, events, duplicates, rejected, updated_us) "
                "values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
                (workspace, move.intake, move.topic, move.next, *counters, recorded_us),
            )
        else:
            done = tx.run(
                "update intakes set next_offset = ?, events = events + ?, duplicates = duplicates + ?, "
                "rejected = rejected + ?, updated_us = ? where workspace = ? and intake = ? and next_offset = ?",
                (move.next, *counters, recorded_us, workspace, move.intake, move.expect),
            )
        if done != 1:
            raise IntakeConflict(
                f"intake {move.intake!r} of workspace {workspace!r} no longer stands at {move.expect}: "
                "another consumer moved it; seek to the ledger's offset"
            )
    add_alerts(tx, workspace, (move.alert for move in moves if move.alert is not None))


def _shares(moves: Sequence[IntakeMove], result: Sequence[Outcome]) -> list[tuple[IntakeMove, int, int, int]]:
    """Say how many events each move brought: ``took`` slices the batch; a lone move brought all of it."""
    shares = []
    at = 0
    for move in moves:
        took = move.took if move.took is not None else len(result) if len(moves) == 1 else 0
        part = result[at : at + took]
        at += took
        accepted, reused = part.count("accepted"), part.count("reused")
        shares.append((move, accepted, len(part) - accepted - reused, reused))
    return shares
