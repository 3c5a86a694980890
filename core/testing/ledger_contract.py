"""Helpers for tests of ledgers: events without the ceremony of accepting them, instances, groups with a lease."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from streamfold.core.events.model import Envelope, NewEvent, Subject
from streamfold.core.ledger.abc import Instance, Lease, Ledger

WORKSPACE = "w"
TTL_US = 10_000_000


def make_event(
    id: str,
    *,
    source: str = "test",
    type: str = "rating.given",
    subject: str = "u1",
    data: bytes = b"{}",
    sequence: int | None = None,
    deletes: bool = False,
    retry_of: int | None = None,
) -> NewEvent:
    """Make an accepted event; the same arguments give the same event, other ``data`` another digest."""
    return NewEvent(
        type=type,
        id=id,
        source=source,
        subject=Subject("user", subject),
        dedup=blake2b(id.encode()).digest()[:10] + blake2b(source.encode()).digest()[:6],
        digest=blake2b(type.encode() + b"\0" + data, digest_size=8).digest(),
        body=msgspec.msgpack.encode(Envelope(type, source, id, "user", subject, 1, data, sequence)),
        deletes=deletes,
        sequence=sequence,
        retry_of=retry_of,
    )


def make_events(*ids: object) -> list[NewEvent]:
    return [make_event(str(id)) for id in ids]


def make_instance(name: str = "memory", *, start_seq: int = 0, group: str | None = None) -> Instance:
    return Instance(
        instance_id=0,
        name=name,
        use="plugin:memory",
        version=1,
        config_hash="c",
        config="{}",
        code_hash="h",
        start_seq=start_seq,
        slot="live",
        group=group or name,
    )


def make_lease(ledger: Ledger, name: str = "memory", *, owner: str = "a", now_us: int = 0) -> Lease:
    """Pin an instance with a group of its own and take its lease."""
    ledger.add_instance(WORKSPACE, make_instance(name))
    lease = ledger.acquire(WORKSPACE, name, owner, now_us=now_us, ttl_us=TTL_US)
    assert lease is not None
    return lease
