"""The ledger's contract: everything durable that is not a file goes through here, and all SQL is behind it.

Two implementations (SQLite for the embedded shape, PostgreSQL for the distributed one) pass one contract test.
Methods are synchronous and thread-safe. Foreign errors become ``LedgerError`` s. Every table's key starts with the
workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from streamfold.core.events.model import Envelope, NewEvent, Subject

Slot = Literal["live", "shadow", "retired"]
Outcome = Literal["accepted", "duplicate", "reused", "erased"]
Stage = Literal["decode", "validate", "prepare", "fold"]
Reason = Literal["expired", "compacted"]

_decode = msgspec.msgpack.Decoder(Envelope).decode
NORMAL, SUPERSEDED, ERASED = 0, 1, 2
"""A log row's effect: folded, logged but not folded (an older ``sequence``), traces removed."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of the log. ``body`` is the msgpack of ``Envelope``; ``effect``: NORMAL, SUPERSEDED or ERASED."""

    seq: int
    recorded_us: int
    type: str
    body: bytes
    effect: int = NORMAL
    retry_of: int | None = None


def matching(rows: Sequence[LogRow], event_id: str, source: str | None) -> list[LogRow]:
    """Return the rows, newest first, whose event has this id: keys are hashes, so the ids themselves are compared."""
    found = []
    for row in reversed(rows):
        envelope = _envelope(row)
        if envelope is not None and envelope.id == event_id and source in (None, envelope.source):
            found.append(row)
    return found


def _envelope(row: LogRow) -> Envelope | None:
    try:
        return _decode(row.body)
    except msgspec.DecodeError:
        return None  # an erased row keeps its position, not its content


@dataclass(frozen=True, slots=True)
class LogPage:
    """Rows after a position, and the head (last allocated position) read *before* them."""

    head: int
    rows: list[LogRow]
    left_upto: int = 0
    """The highest position that has left the log, read before the rows: up to it there are holes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a rule has to tell somebody.

    ``position``: of the event that the rule heeded. ``body``: JSON. ``attempts``: to deliver it. ``due_us``: it is not
    to be tried before that; also not by another process while one is trying.
    """

    alert_id: str
    rule: str
    position: int
    body: str
    made_us: int
    attempts: int = 0
    due_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeMove:
    """A compare-and-set of one intake's position: e.g. ``intake="kafka:CLUSTER:TOPICID:0"``.

    ``expect`` is the stored next offset (``None``: no row yet); ``next`` the new one. Counters are added.
    """

    intake: str
    expect: int | None
    next: int
    duplicates: int = 0
    rejected: int = 0
    topic: str = ""
    took: int | None = None
    """How many of the batch's events, in the order of the moves, came through this intake: their outcomes are added to
    its counters. ``None``: all of them when this is the only move, else none."""
    alert: Alert | None = None
    """What is to be told about it; kept in the same transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An input that was not taken. ``policy`` and ``position`` are set for events skipped by an instance."""

    stage: Stage
    code: str
    detail: str
    policy: str | None = None
    position: int | None = None
    event_id: str | None = None
    source: str | None = None
    offset: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    payload: bytes = b""
    attempts: int = 1
    at_us: int = 0
    dead_letter_id: int = 0
    """Set by the ledger."""
    skipped_by: str | None = None
    """Who skipped the event, as ``Instance.lineage`` (default: ``policy``); not kept in the letter itself."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch: per event its outcome and the position it has (or had, for duplicates)."""

    outcomes: list[Outcome]
    positions: list[int]
    superseded: int
    """How many of the accepted carry an older ``sequence``: logged with effect SUPERSEDED."""
    head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A policy's pinned instance: (workspace, name, version, config hash, start seq)."""

    instance_id: int
    name: str
    use: str
    version: int
    config_hash: str
    config: str
    """JSON of the policy's config."""
    code_hash: str
    start_seq: int
    slot: Slot
    group: str
    created_us: int = 0
    generation: int = 0
    """Which fold of the same policy, version and configuration this is: a rebuild makes the next one."""
    rate: int = 0
    """Most events per second that a shadow folds; 0: no limit."""

    @property
    def key(self) -> str:
        """``name@version``, as in dead letters and REST."""
        return f"{self.name}@{self.version}"

    @property
    def label(self) -> str:
        """The version in full: with the configuration's hash, and the generation past the first."""
        return f"{self.version}-{self.config_hash[:8]}{f'.{self.generation}' if self.generation else ''}"

    @property
    def lineage(self) -> str:
        """What all generations have in common: skips are recorded under it, so that a rebuild honours them."""
        return f"{self.name}@{self.version}-{self.config_hash[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """A group's durable state: writer epoch, watermark, last commit, checkpoint and why it is halted, if it is."""

    group: str
    epoch: int
    watermark: int
    commit_no: int
    owner: str | None
    lease_until_us: int
    checkpoint: str | None
    """Name (path below the checkpoint root) of the newest complete checkpoint."""
    checkpoint_commit: int
    checkpoint_watermark: int
    halted: str | None = None
    """Reason of a halt: policy, event, traceback."""
    paused: bool = False
    skips: int = 0
    state_bytes: int = 0
    feed_bytes: int = 0
    """Bytes of the feed since the last checkpoint."""
    auto: bool = False
    """A shadow that takes over by itself once it has caught up (a changed declaration)."""
    replaces: str | None = None
    """The group whose place a rebuilt one takes once it has caught up."""
    live_from: int = 0
    """The position of its promotion: a view that served another group before switches when it has reached it."""
    retire_us: int = 0
    """A demoted group folds on, ready for a rollback, until this time; 0: it was not demoted."""
    halted_by: str | None = None
    """``name@version`` of the policy that failed, and the position of the event it failed at."""
    halted_at: int | None = None
    share_ppm: int = 0
    """The millionths of the users that a shadow answers, in a live A/B; 0: none."""
    experiment: str = ""
    """The name of that A/B, which also salts who is among them."""
    weighted: bool = True
    """Whether both arms learn from what is shown as far as they show such things themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """What a promotion did: at which position, and which groups it demoted."""

    group: str
    position: int
    demoted: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what to what, when and why."""

    actor: str
    action: str
    target: str
    reason: str
    at_us: int
    audit_id: int = 0
    """Set by the ledger."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a group: commits carry the epoch; a newer epoch fences this one."""

    group: str
    owner: str
    epoch: int
    watermark: int
    commit_no: int


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a group's feed: changes are the packed changes of its stores."""

    group: str
    commit_no: int
    watermark: int
    changes: bytes
    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasing event and what became of it. ``subject`` has no id from *settling* on.

    ``state``: accepted, hidden, scrubbed (traces gone, report under way), settling (old versions of rows are being
    given up), complete, failed (traces were left).
    ``found``: positions of the subject's events before the erasure, once they were looked for. ``report``: JSON.
    """

    position: int
    subject: Subject
    state: str
    requested_us: int
    hidden_us: int
    completed_us: int
    found: list[int] | None
    report: str


@dataclass(frozen=True, slots=True)
class ErasedGroup:
    """What a group did about an erasure: ``method`` exact or rebuild; ``state`` done, checkpoint (forgotten, the state
    is to be written afresh) or rebuild (to be folded afresh); ``removed``: how many events it forgets."""

    position: int
    group: str
    method: str
    state: str
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """Events that left the log together: into a file of the archive (``name``), or for good (no name).

    ``types``: by event type how many they are, and the position of the last. ``cleared``: no row of them is left.
    """

    number: int = 0
    """Set by the ledger."""
    name: str
    reason: Reason
    first: int
    last: int
    events: int
    bytes: int = 0
    digest: str = ""
    types: Mapping[str, tuple[int, int]]
    cleared: bool = False
    made_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Where a workspace's retention stands: when it was asked for and ran last, and what that run said (JSON)."""

    asked_us: int = 0
    ran_us: int = 0
    compacted_upto: int = 0
    """Up to here every event that a later one replaces has left."""
    report: str = ""


@dataclass(frozen=True, slots=True)
class Floor:
    """Up to where a group needs the log no more; past ``position`` a checkpoint would move it to ``watermark``."""

    group: str
    position: int
    watermark: int


@dataclass(frozen=True, slots=True)
class LogKey:
    """A log row without its content."""

    seq: int
    recorded_us: int
    type: str
    effect: int
    retry_of: int | None
    subject: Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What an erasure removes from the ledger: log rows, keys of their ids, backend results, dead letters.

    ``dedups``: keys with their events' positions. ``files``: archive files, by their departure's number, each with
    what takes its place, written under the archive's lease of this ``epoch``; None: nothing of it is left.
    """

    subject: Subject
    seqs: Sequence[int]
    dedups: Sequence[tuple[bytes, int]]
    results: Sequence[tuple[str, bytes]]
    letters: Sequence[int]
    files: Mapping[int, Departure | None] = field(default_factory=dict)
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class PrepareClaim:
    """One event whose prepare this process may run: row and attempts made before."""

    row: LogRow
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeState:
    """Where an intake stands, and what it has counted."""

    intake: str
    topic: str
    next_offset: int
    events: int
    duplicates: int
    rejected: int
    updated_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeEnd:
    """Where an intake would stand if it had taken all that its broker has, as its own process saw it.

    ``next_offset`` less that of the intake's :class:`IntakeState` (0 without one) is how far it is behind.
    """

    intake: str
    topic: str
    next_offset: int
    seen_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the ledger keeps it: what it is allowed, and the SHA-256 of it, never the key."""

    workspace: str
    key_id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created_by: str
    created_us: int
    revoked_us: int = 0
    """0: it is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What a workspace may use; ``None``: no limit. ``bytes``: of its log, as stored."""

    events_per_s: float | None = None
    bytes: int | None = None
    queries_per_s: float | None = None


class Ledger(Protocol):
    """The durable record of one installation: many workspaces."""

    timeline_id: str
    """Random id made when the database was created; a restored database gets a new one."""

    def close(self) -> None: ...

    def backup(
        self,
        folder: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        archive: Path | None = None,
    ) -> dict[str, Any]:
        """Write a consistent copy into a new folder while everything goes on; returns its manifest.

        ``archive``: the folder of this timeline's archive, whose files are copied with it.
        """

    def ensure_workspace(self, workspace: str) -> None:
        """Create the workspace's head row when missing (idempotent)."""

    def workspaces(self) -> list[str]: ...

    # -- the log -----------------------------------------------------------------------------------------------
    def append(
        self,
        workspace: str,
        events: Sequence[NewEvent],
        *,
        recorded_us: int,
        moves: Sequence[IntakeMove] = (),
        dead: Sequence[DeadLetter] = (),
    ) -> Appended:
        """Append what is new, in order, with intake moves and undecodable inputs, in one transaction.

        Duplicates within the batch count too. Raises ``IntakeConflict`` (nothing written) when a move's ``expect``
        is stale, ``LedgerUnavailable`` on I/O. An event with ``sequence`` lower than or equal to the stored one of
        (source, subject) is logged with effect SUPERSEDED. Deletions go into the deletions index too.
        """

    def head(self, workspace: str) -> int: ...

    def read(
        self, workspace: str, after: int, limit: int, *, upto: int | None = None, types: Sequence[str] | None = None
    ) -> LogPage:
        """Rows with seq > after (and ≤ upto, of these types) in order. Fewer than ``limit`` rows means that everything
        up to head (or ``upto``) was read."""

    def rows(self, workspace: str, seqs: Sequence[int]) -> list[LogRow]: ...

    def find(self, workspace: str, event_id: str, source: str | None = None) -> list[LogRow]:
        """Rows of the events with this id, newest first (several when sources differ)."""

    def find_seqs(self, workspace: str, event_id: str) -> list[int]:
        """Positions of the events that may have this id, while the de-duplication knows it."""

    def page(
        self, workspace: str, *, after: int, limit: int, type: str | None = None, subject_id: str | None = None
    ) -> list[LogRow]:
        """A page of the log for people, filtered."""

    def deletions(self, workspace: str, after: int) -> list[tuple[int, str, str]]:
        """(seq, kind, id) of deletions past a position, in order."""

    def newest_seq(
        self, workspace: str, kind: str, subject_id: str, after: int, *, type: str | None = None
    ) -> int | None:
        """Position of the newest event of a main subject past ``after``, if any, perhaps of one type alone;
        ``document.extracted`` is not looked at."""

    def newest_seqs(
        self,
        workspace: str,
        kind: str,
        subject_ids: Sequence[str],
        *,
        after: int,
        types: Sequence[str],
        upto: int | None = None,
    ) -> dict[str, int]:
        """Positions of the newest events of main subjects, of these types, past ``after`` and up to ``upto``; a scan of
        that part of the log."""

    def count(self, workspace: str, added: Mapping[str, int]) -> None:
        """Add to counters by name. After a power cut the last additions may be missing."""

    def counted(self, workspace: str, names: Sequence[str]) -> dict[str, int]:
        """The counters' values; 0 for one that nothing was added to."""

    def intakes(self, workspace: str) -> list[IntakeState]: ...

    def note_ends(self, workspace: str, ends: Sequence[IntakeEnd]) -> None:
        """Keep how far intakes could be; what was seen earlier than what is kept changes nothing. After a power cut
        the last may be missing."""

    def intake_ends(self, workspace: str) -> list[IntakeEnd]: ...

    # -- instances and groups ----------------------------------------------------------------------------------
    def instances(self, workspace: str) -> list[Instance]: ...

    def add_instance(self, workspace: str, instance: Instance) -> Instance:
        """Pin an instance (idempotent on name, version, config hash, start seq, generation); returns it with its id.
        Creates the group's row with watermark = start_seq when missing."""

    def set_slot(self, workspace: str, group: str, slot: Slot) -> None: ...

    # -- versions ----------------------------------------------------------------------------------------------
    def slots_revision(self, workspace: str) -> int:
        """A number that grows with every change of instances and slots: one cheap query that views poll."""

    def add_group(
        self,
        workspace: str,
        members: Sequence[Instance],
        *,
        auto: bool = False,
        replaces: str | None = None,
        unless_exists: bool = False,
        revision: int | None = None,
        audit: AuditEntry | None = None,
    ) -> list[Instance]:
        """Pin all members of a group, or none, in one transaction.

        ``members[0].group`` is the group's name without a generation; the next free generation is taken.
        ``unless_exists``: nothing is done (and nothing returned) when any generation of the group exists.
        ``revision``: raises ``VersionConflict`` when :meth:`slots_revision` is another one by now.
        """

    def promote(
        self,
        workspace: str,
        group: str,
        *,
        retire_us: int,
        at_least: int = 0,
        revision: int | None = None,
        audit: AuditEntry,
    ) -> Promoted:
        """Make a shadow live and demote the live groups of the same names to shadows that are retired at ``retire_us``,
        in one transaction at one position: the demoted groups' watermark, or ``at_least``.

        Raises ``VersionConflict`` when the group is not a shadow, is halted or paused, or may hold what an erasure
        removes, or slots have changed since ``revision``; ``NotCaughtUp`` when it has not reached the position.
        """

    def split(
        self, workspace: str, group: str, *, share_ppm: int, experiment: str, weighted: bool = True, audit: AuditEntry
    ) -> None:
        """Let a shadow answer a share of the users from now on, or with ``share_ppm=0`` none any more; another share
        or name is another experiment.

        It ends by itself when who answers changes: by a promotion or a retirement of anything of the same names. A
        rebuilt group goes on for the one that it replaces.

        Raises ``VersionConflict`` when the group is no shadow, is halted or paused, may hold what an erasure removes,
        nothing of its names is live, another split of one of them runs or, to end it, none does; ``NotCaughtUp`` when
        it has not folded as far as what is live.
        """

    def taking_over(self) -> list[tuple[str, str]]:
        """The shadows of all workspaces that are to take over by themselves: each one's workspace, and its group's name
        without the generation."""

    def splits(self, workspace: str) -> set[str]:
        """The groups that answer a share of the users."""

    def replace_group(self, workspace: str, group: str, *, audit: AuditEntry) -> Promoted:
        """Let a rebuilt group take the slot of the one it ``replaces``, which is retired, in one transaction.

        Raises as ``promote`` does, but for a halt or a pause.
        """

    def retire(self, workspace: str, group: str, *, audit: AuditEntry, due_us: int | None = None) -> None:
        """Retire a group: it is folded and served no more, its feed and prepared values are dropped.

        ``due_us``: only if it was demoted and its time is over by then. Raises ``VersionConflict``.
        """

    def drop_checkpoint(self, workspace: str, group: str) -> None:
        """A retired group's checkpoint files are gone: forget their name."""

    def skip(self, workspace: str, group: str, letter: DeadLetter, *, audit: AuditEntry) -> None:
        """Record that the instance of ``letter`` skips the event at which its group is halted, fencing whoever tries it
        just now. Raises ``VersionConflict`` when the group is not halted there, or has skipped it already."""

    def commit_of(self, workspace: str, group: str, position: int) -> tuple[int, int] | None:
        """(commit number, time) of the commit that covers a position, while it is in the feed."""

    def count_types(self, workspace: str, after: int, upto: int) -> dict[str, int]:
        """How many events of each type lie in a range of the log. O(range)."""

    def groups(self, workspace: str) -> list[GroupState]: ...

    def group(self, workspace: str, group: str) -> GroupState: ...

    def set_halted(
        self,
        workspace: str,
        group: str,
        reason: str | None,
        *,
        policy: str | None = None,
        position: int | None = None,
    ) -> None:
        """Say why a group does not go on (``None``: it does), which policy failed and at which event."""

    def set_paused(self, workspace: str, group: str, paused: bool) -> None: ...

    # -- leases, commits, feed ---------------------------------------------------------------------------------
    def acquire(self, workspace: str, group: str, owner: str, *, now_us: int, ttl_us: int) -> Lease | None:
        """Take a free, expired or own lease: epoch + 1 (own and unexpired: same epoch). None when taken."""

    def renew(self, workspace: str, leases: Sequence[Lease], *, now_us: int, ttl_us: int) -> list[Lease]:
        """Extend leases; returns those that still stand."""

    def release(self, workspace: str, lease: Lease) -> None: ...

    def commit(
        self,
        workspace: str,
        lease: Lease,
        *,
        watermark: int,
        changes: bytes | None,
        dead: Sequence[DeadLetter] = (),
        erased: Sequence[ErasedGroup] = (),
        state_bytes: int = 0,
        now_us: int,
        ttl_us: int,
    ) -> Lease:
        """Move the watermark from ``lease.watermark`` and write the changes as commit ``lease.commit_no + 1``, in one
        transaction, compare-and-set on (epoch, watermark), extending the lease. ``changes=None``: the watermark moves
        alone (no feed row and no new commit number). Dead letters of skips, and what was forgotten, go in the same
        transaction. Raises ``Fenced``. Returns the lease as it stands after."""

    def feed(self, workspace: str, cuts: Mapping[str, int], *, limit_bytes: int = 8_000_000) -> list[Commit]:
        """Commits of the groups past the given commit numbers, in order per group (one query when nothing moved)."""

    def watermarks(self, workspace: str) -> dict[str, tuple[int, int]]:
        """group → (watermark, commit_no): one cheap query that views poll."""

    def behind(self) -> list[str]:
        """The workspaces in which a group that is not retired is behind the log, in one query."""

    def set_checkpoint(self, workspace: str, lease: Lease, *, name: str, commit_no: int, watermark: int) -> None:
        """Point to a complete checkpoint, fenced by the epoch; drops the feed up to ``commit_no``. Raises
        ``Fenced``."""

    def reset_group(self, workspace: str, group: str, *, watermark: int) -> None:
        """Forget checkpoint and feed so that the group is folded afresh from ``watermark``; fences its writer."""

    # -- prepare -----------------------------------------------------------------------------------------------
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
        """Claim events past ``after`` of these types that have neither result nor live claim (FOR UPDATE SKIP LOCKED
        or equivalent)."""

    def prepare_save(self, workspace: str, instance_id: int, values: Mapping[int, bytes]) -> None:
        """Store prepared values by seq; clears the claims."""

    def prepare_fail(self, workspace: str, instance_id: int, seq: int, *, code: str, detail: str, final: bool) -> None:
        """Record a failed attempt; ``final`` makes the fold skip the event."""

    def prepare_load(
        self, workspace: str, instance_id: int, seqs: Sequence[int]
    ) -> tuple[dict[int, bytes], dict[int, tuple[str, str]]]:
        """(values by seq, final failures by seq as (code, detail))."""

    def prepare_drop(self, workspace: str, instance_id: int, upto: int) -> None:
        """Drop prepared values at or before a committed watermark."""

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
        """Claim those of the given rows (which may have left the log) that have neither result nor live claim."""

    def results_get(self, workspace: str, backend: str, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
        """Backend results by content hash (16 bytes)."""

    def results_put(self, workspace: str, backend: str, results: Mapping[bytes, bytes]) -> None:
        """Keep backend results; the first writer wins."""

    # -- dead letters ------------------------------------------------------------------------------------------
    def dead_letters(
        self,
        workspace: str,
        *,
        after: int = 0,
        limit: int = 50,
        policy: str | None = None,
        stage: str | None = None,
        code: str | None = None,
    ) -> list[DeadLetter]:
        """A page, oldest first, ids > after."""

    def dead_letter(self, workspace: str, dead_letter_id: int) -> DeadLetter | None: ...

    def dead_letter_count(self, workspace: str) -> int: ...

    def drop_dead_letter(self, workspace: str, dead_letter_id: int) -> bool: ...

    def skips_of(self, workspace: str, position: int) -> list[str]:
        """Who skipped the event at ``position``, as ``Instance.lineage`` (kept though the dead letter was dropped or
        retried)."""

    def skipped_seqs(self, workspace: str, policy: str) -> set[int]:
        """All positions that were skipped by an ``Instance.lineage``: replay honours them."""

    # -- erasures ----------------------------------------------------------------------------------------------
    def erasures(self, workspace: str) -> list[Erasure]:
        """The erasures whose subject is still known, in order."""

    def unsettled(self, workspace: str) -> list[Erasure]:
        """The erasures that are done but for ``settle``."""

    def erasure(self, workspace: str, position: int) -> Erasure | None: ...

    def erasing_workspaces(self) -> list[str]:
        """The workspaces with erasures that are not complete."""

    def erased_since(self, workspace: str, at_us: int) -> bool:
        """Whether an erasure is under way, or was completed at a time or later."""

    def erased_groups(self, workspace: str, position: int) -> list[ErasedGroup]:
        """What each group that has passed the erasure did about it."""

    def unforgotten(self, workspace: str) -> list[tuple[str, str, str]]:
        """(kind, id, group) of erased subjects that a group holds until it is folded afresh."""

    def set_hidden(self, workspace: str, position: int, at_us: int) -> None: ...

    def note_groups(self, workspace: str, notes: Sequence[ErasedGroup]) -> None: ...

    def scan(
        self, workspace: str, upto: int, subjects: Sequence[Subject], patterns: Sequence[bytes]
    ) -> Iterator[LogRow]:
        """Rows up to a position, not erased, whose main subject is one of these or whose body contains one of the
        patterns, in order. Reads the whole log."""

    def set_found(self, workspace: str, found: dict[int, list[int]]) -> None:
        """Keep, by erasure, the positions of its subject's events; the first who looked wins."""

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
        """Put a checkpoint, made at the lease's watermark, in the place of a group's state, with a commit number of
        its own, so that views load it; drops the feed. Raises ``Fenced`` when the group has moved."""

    def scrub(self, workspace: str, position: int, traces: Traces, report: str) -> dict[str, int] | None:
        """Empty log rows and digests, delete the other traces, in one transaction; returns how many rows of what.
        None (nothing was done) while a group has not forgotten."""

    def empty_erasure(self, workspace: str, position: int, report: str, *, freed: int) -> None:
        """Empty the erasing event itself and the erasure's subject; the log has so many bytes less from now on."""

    def end_erasure(self, workspace: str, position: int, state: str, at_us: int) -> None: ...

    def erasures_ended(self) -> int:
        """A number that grows with every erasure that ends, of any workspace: one cheap query that processes poll."""

    def note_deltas(self, workspace: str, group: str, upto: int, deltas: Mapping[str, str], *, over_by_us: int) -> None:
        """Write into the reports of the newest erasures up to a position that were over by a time, and that a group
        has forgotten: under ``deltas``, by group and ``name@version``, values as JSON in the place of those there."""

    def settle(self) -> None:
        """Have the database give up old versions of changed rows: SQLite's write-ahead log and unused parts of pages,
        PostgreSQL's dead tuples."""

    # -- retention ---------------------------------------------------------------------------------------------
    def left_upto(self, workspace: str) -> int:
        """The highest position that has left the log."""

    def departures(self, workspace: str) -> list[Departure]:
        """What has left the log, in order."""

    def retention(self, workspace: str) -> Retention: ...

    def retention_due(self, now_us: int, every_us: int) -> list[str]:
        """The workspaces whose retention was asked for, or did not run for so long."""

    def ask_retention(self, workspace: str, *, actor: str, at_us: int) -> int:
        """Have the retention run soon; written to the audit trail. Returns the time that ``ran_us`` will have reached
        then, which is after the last run's, whatever the clocks of two hosts say."""

    def archive_lease(self, workspace: str, owner: str, *, now_us: int, ttl_us: int) -> int | None:
        """Take the right to write a workspace's archive; returns its epoch, a new one each time. None when taken."""

    def archive_renew(self, workspace: str, epoch: int, *, now_us: int, ttl_us: int) -> None:
        """Extend the lease. Raises ``Fenced`` when it was taken over."""

    def archive_release(self, workspace: str, epoch: int) -> None: ...

    def floors(self, workspace: str) -> list[Floor]:
        """Up to where each group that is not retired has folded and needs the log no more."""

    def seq_before(self, workspace: str, at_us: int) -> int:
        """The position of the newest event that was logged before a time; 0 when there is none."""

    def keys(self, workspace: str, after: int, upto: int, limit: int) -> list[LogKey]:
        """Rows of a range in order, without their content."""

    def erasures_seen(self, workspace: str) -> tuple[int, int] | None:
        """A token that each new erasure changes; None while one is pending."""

    def depart(
        self,
        workspace: str,
        epoch: int,
        departure: Departure,
        *,
        erasures: tuple[int, int],
        seqs: Sequence[int] = (),
        now_us: int,
        ttl_us: int,
    ) -> bool:
        """Record that events leave: those of a file that is whole and in its place, whose rows ``clear`` then deletes;
        or, without a name, the ``seqs``, which are deleted at once.

        False (nothing was done) when a group needs them again, or an erasure came since ``erasures`` was read. Raises
        ``Fenced`` when the lease was taken over.
        """

    def clear(
        self, workspace: str, epoch: int, number: int, seqs: Sequence[int], *, last: bool, now_us: int, ttl_us: int
    ) -> None:
        """Delete rows of a departure that has a file, one batch in one transaction. Raises ``Fenced``."""

    def prune_dedup(self, workspace: str, before_us: int, after: bytes, limit: int) -> tuple[bytes, int]:
        """Forget ids of events logged before a time, among so many past a key; returns the last key looked at (empty:
        the end) and how many were forgotten. Ids of erased events stay."""

    def old_dedup(self, workspace: str, before_us: int) -> int:
        """How many ids ``prune_dedup`` would forget. Reads all of them."""

    def end_retention(self, workspace: str, epoch: int, *, at_us: int, compacted_upto: int, report: str) -> None:
        """Record a run that is done and let go of the lease. Raises ``Fenced``."""

    # -- audit -------------------------------------------------------------------------------------------------
    def audit(self, workspace: str, *, actor: str, action: str, target: str, reason: str, at_us: int) -> None: ...

    def audits(self, workspace: str, *, before: int | None = None, limit: int = 50) -> list[AuditEntry]:
        """A page of the audit trail, newest first, ids < before."""

    # -- alerts ------------------------------------------------------------------------------------------------
    def alerts(self, workspace: str) -> list[Alert]:
        """Those that are not delivered, in order of their positions."""

    def alerting_workspaces(self) -> list[str]:
        """The workspaces with alerts that are not delivered."""

    def move_alert(self, workspace: str, alert: Alert, *, attempts: int, due_us: int) -> bool:
        """Say when an alert is due next, if it stands as it was read; False: somebody else moved or ended it."""

    def end_alert(self, workspace: str, alert_id: str) -> None:
        """Forget an alert: it was delivered, or given up."""

    # -- keys and quotas ---------------------------------------------------------------------------------------
    def access_version(self) -> int:
        """A number that each change of a key or a quota, by any process, moves on."""

    def api_keys(self) -> list[ApiKey]:
        """All keys of all workspaces, revoked ones too."""

    def add_api_key(self, key: ApiKey, *, actor: str) -> None:
        """Keep a key; creates the workspace when missing, and writes the audit trail."""

    def revoke_api_key(self, workspace: str, key_id: str, *, actor: str, at_us: int) -> bool:
        """Revoke a key for good; False when the workspace has none of this id. Again: no effect."""

    def quotas(self) -> dict[str, Quotas]:
        """The quotas of the workspaces that were given any."""

    def set_quotas(self, workspace: str, quotas: Quotas, *, actor: str, at_us: int) -> None:
        """Set a workspace's quotas; creates it when missing, and writes the audit trail."""

    def log_bytes(self, workspace: str) -> int:
        """Bytes of the events in the log, as stored."""

    def size_bytes(self) -> dict[str, int]:
        """Bytes per part of the ledger: log, feed, results, dead letters, total."""
