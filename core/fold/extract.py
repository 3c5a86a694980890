"""Ask an extractor about documents, and log what it found as events: no fold ever waits for a language model.

For each accepted ``document.upserted`` of a workspace in which an instance is pinned with today's extractor, its
passages are asked about and one ``document.extracted`` per passage is appended, naming the document's position. Work
is found by query, as prepare's is: documents past a position (an intake's, moved by compare-and-set) that no process
has claimed. Results are kept by content, so an unchanged passage is never asked about again, and an event's id is made
from extractor, document, position and passage, so redelivery and two workers double nothing.

What fails: an answer that will not do becomes a dead letter (stage ``prepare``) and the document's other passages go
on. An endpoint that cannot be asked, or a budget that is used up, is waited for. A document that fails again and again
while others succeed is a dead letter, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from streamfold.core.clock import US
from streamfold.core.context import Context, Runtime, backend_identities
from streamfold.core.errors import BackendUnavailable, ConfigError, EventError, IntakeConflict, InvalidAnswer
from streamfold.core.errors import InvalidEvent as Invalid
from streamfold.core.events import Acceptor, Event, ExtractedEntity, ExtractedRelation, NewEvent
from streamfold.core.fold.tools import InstanceTools, backend_name, content_hash, extractor_id
from streamfold.core.ledger.abc import NORMAL, DeadLetter, IntakeMove, PrepareClaim
from streamfold.core.policy import Extraction, Extractor, Passage
from streamfold.core.spending import Spending

log = logging.getLogger("streamfold.extract")
INTAKE = "extract:"
"""How the names of these intakes begin."""
SOURCE = "/streamfold/extractor"
_UPSERTED = ("document.upserted",)
_REPLACED = ("document.upserted", "document.deleted", "document.erased")
_CLAIM_S = 300.0
"""For as long nobody else looks at a claimed document, though its process may be dead."""
_TRIES = 5
_PAGE = 256
_LOOK_BACK, _REMEMBERED = 50_000, 10_000
"""Positions, and documents, up to which an unchanged passage is recognised."""
_IDLE_MOVE = 10_000
_LONGEST_PAUSE_S = 60.0


class _Kept(msgspec.Struct, array_like=True):
    """An extraction as the ledger keeps it."""

    entities: list[ExtractedEntity]
    relations: list[ExtractedRelation]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Kept).decode
Outcome = bytes | InvalidAnswer | BackendUnavailable
_Answers = queue.SimpleQueue[tuple[bytes, Outcome | None]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is asked in a workspace: for whom, whom, and under which names it is kept."""

    workspace: str
    runtime: Runtime
    extractor: Extractor
    label: str
    backend: str
    intake: str

    @property
    def claims(self) -> int:
        """Under which number documents are claimed: prepare has the instance's own."""
        return -self.runtime.instance.instance_id


@dataclass(slots=True)
class _Document:
    """A claimed document and what is known of its passages, by content hash."""

    event: Event
    position: int
    attempts: int
    passages: dict[bytes, Passage]
    unchanged: frozenset[str]
    """Hashes of further passages, about which the log holds what was told of the text before."""
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == len(self.passages)

    @property
    def unavailable(self) -> list[BackendUnavailable]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, BackendUnavailable)]


@dataclass(frozen=True, slots=True)
class _Logged:
    """What was logged about a document last: of which position, up to which position, of which passages."""

    position: int
    logged_at: int
    hashes: frozenset[str]


class Extracting:
    """The extraction of one process; ``run`` is called by one thread.

    Parameters
    ----------
    on_append : called with a workspace after events were appended to its log.
    """

    def __init__(self, context: Context, *, on_append: Callable[[str], None]) -> None:
        self.context = context
        self.on_append = on_append
        limits = context.settings.limits
        self._acceptor = Acceptor(
            context.registry.event_types, context.clock, max_event_bytes=max(limits.max_event_bytes, 1 << 20)
        )
        self._stopped = threading.Event()
        self._pool: _Pool | None = None
        self._until: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._failing: dict[tuple[str, int], int] = {}
        self._logged: dict[tuple[str, str], _Logged] = {}

    @property
    def is_configured(self) -> bool:
        """Whether the settings name an extractor that asks somebody."""
        return self._extractor() is not None

    def _extractor(self) -> Extractor | None:
        registry = self.context.registry
        if "extractor" not in self.context.settings.backends:
            return None
        made: Extractor = registry.make_backend("extractor", self.context.settings.backends["extractor"])
        return made if made.asks else None

    def run(self, workspace: str) -> bool:
        """Extract what there is, up to some documents; True when there may be more to do now."""
        more = False
        for plan in self._plans(workspace):
            more |= not self._stopped.is_set() and self._step(plan)
        return more

    def stop(self) -> None:
        """Ask nothing more. What is being asked just now is dropped, and asked again by whoever comes next."""
        self._stopped.set()
        if self._pool is not None:
            self._pool.stop()

    def _plans(self, workspace: str) -> list[_Plan]:
        """One for each way of cutting documents, of the instances that are pinned with today's extractor."""
        extractor = self._extractor()
        if extractor is None:
            return []
        identity = self.context.registry.backend_identity("extractor")
        label, backend = extractor_id(identity), backend_name("extractor", identity)
        found: dict[str, Runtime] = {}
        for group in self.context.groups(workspace):
            for runtime in group.runtimes:
                pinned = backend_identities(runtime.instance)
                if "extractor" in pinned and backend_name("extractor", pinned["extractor"]) == backend:
                    chunker = json.dumps(pinned.get("chunker"), sort_keys=True)
                    old = found.setdefault(chunker, runtime)
                    if runtime.instance.instance_id < old.instance.instance_id:
                        found[chunker] = runtime
        return [
            _Plan(workspace, runtime, extractor, label, backend, f"{INTAKE}{label}:{_digest(chunker)[:8]}")
            for chunker, runtime in found.items()
        ]

    # -- one round ----------------------------------------------------------------------------------------------------
    def _step(self, plan: _Plan) -> bool:
        ledger, clock = self.context.ledger, self.context.clock
        key = f"{plan.workspace}/{plan.intake}"
        if time.monotonic() < self._until.get(key, 0.0):
            return False
        head = ledger.head(plan.workspace)
        if self._seen.get(key) == head:
            return False
        cursor = self._cursor(plan)
        if self.context.settings.is_embedded and key not in self._seen:
            ledger.prepare_drop(plan.workspace, plan.claims, head)  # claims of a process that is gone: nobody else is
        self._seen[key] = -1
        claims = ledger.prepare_claim(
            plan.workspace,
            plan.claims,
            after=cursor or 0,
            types=_UPSERTED,
            owner=self.context.owner,
            now_us=clock.now_us(),
            ttl_us=int(_CLAIM_S * US),
            limit=2 * plan.extractor.concurrency + len(self._failing),
        )
        pause_s = 0.0
        if claims:
            documents = self._documents(plan, claims)
            # Those that failed come last: the first one that is sent to a server that was down should be a good one.
            documents.sort(key=lambda one: ((plan.intake, one.event.seq) in self._failing, one.event.seq))
            pause_s = self._extract(plan, documents)
        moved = self._advance(plan, cursor)
        if pause_s:
            self._until[key] = time.monotonic() + min(max(pause_s, 0.2), _LONGEST_PAUSE_S)
        elif not claims and not moved and not self._is_waited_for(plan):
            self._seen[key] = head
        return bool(claims) or moved

    def _is_waited_for(self, plan: _Plan) -> bool:
        """Whether documents are left whose claims others hold, or held."""
        return bool(self.context.ledger.read(plan.workspace, self._cursor(plan) or 0, 1, types=_UPSERTED).rows)

    def _cursor(self, plan: _Plan) -> int | None:
        found = (s.next_offset for s in self.context.ledger.intakes(plan.workspace) if s.intake == plan.intake)
        return next(found, None)

    def _documents(self, plan: _Plan, claims: Sequence[PrepareClaim]) -> list[_Document]:
        """Cut the claimed documents into passages: those that a newer text has not replaced, and whose it may be."""
        tools = InstanceTools(self.context, plan.workspace, plan.runtime, keep=False)
        events = [self.context.registry.event_types.decode(claim.row) for claim in claims]
        after, ids = min(event.seq for event in events), sorted({event.subject.id for event in events})
        newest = self.context.ledger.newest_seqs(plan.workspace, "document", ids, after=after, types=_REPLACED)
        found = []
        for claim, event in zip(claims, events, strict=True):
            passages: Iterable[Passage] = ()
            if newest.get(event.subject.id, 0) <= event.seq:
                with suppress(EventError):  # its fold will skip it, and say so
                    passages = plan.runtime.policy.passages(event, tools)
            unchanged = self._unchanged(plan, event) & {one.chunk_hash for one in passages}
            asked = {passage_hash(one): one for one in passages if one.chunk_hash not in unchanged}
            found.append(_Document(event, self._origin(plan, event), claim.attempts, asked, unchanged))
        return found

    def _unchanged(self, plan: _Plan, event: Event) -> frozenset[str]:
        """Return the passages of the text before that this process logged before this text came.

        They were folded while that text was the newest, and an unchanged passage keeps what was told of it. What is not
        known for sure is logged again, from what is kept.
        """
        before = self._logged.get((plan.intake, event.subject.id))
        if before is None or event.retry_of is not None:
            return frozenset()
        if before.logged_at >= event.seq or event.seq - before.position > _LOOK_BACK:
            return frozenset()
        between = self.context.ledger.newest_seqs(
            plan.workspace, "document", [event.subject.id], after=before.position, upto=event.seq - 1, types=_REPLACED
        )
        return frozenset() if between else before.hashes

    def _origin(self, plan: _Plan, event: Event) -> int:
        """Return where a document was sent first: a retry, or a retry of one, says nothing new."""
        position, before = event.seq, event.retry_of
        while before is not None:
            position = before
            before = next((row.retry_of for row in self.context.ledger.rows(plan.workspace, [position])), None)
        return position

    def _is_gone(self, plan: _Plan, event: Event) -> bool:
        """Whether a document was deleted, or erased, since: an erasure would not find what is kept after it."""
        later = self.context.ledger.deletions(plan.workspace, event.seq)
        return any((kind, id_) == ("document", event.subject.id) for _, kind, id_ in later)

    def _extract(self, plan: _Plan, documents: Sequence[_Document]) -> float:
        """Ask about all passages that are not known; finish each document as soon as it is complete.

        Returns for how long to ask nothing (0: go on).
        """
        spending = Spending(self.context.ledger, self.context.clock, plan.workspace, "extractor", plan.extractor.budget)
        by_hash: dict[bytes, list[_Document]] = {}
        for document in documents:
            for hash_ in document.passages:
                by_hash.setdefault(hash_, []).append(document)
        kept = self.context.ledger.results_get(plan.workspace, plan.backend, list(by_hash))
        answers: _Answers = queue.SimpleQueue()
        for hash_, owners in by_hash.items():
            if hash_ in kept:
                answers.put((hash_, kept[hash_]))
            else:
                self._pooled(plan).submit(partial(self._answer, plan, spending, owners[0], hash_, answers))
        waiting = {id(document): document for document in documents}
        unlucky: list[_Document] = []
        for document in documents:
            if document.complete:  # it has no passages
                self._finish(plan, waiting.pop(id(document)))
        for _ in by_hash:
            hash_, outcome = self._next(answers)
            if outcome is None:
                break
            for document in by_hash[hash_]:
                document.outcomes[hash_] = outcome
                if document.complete:
                    del waiting[id(document)]
                    if document.unavailable:
                        unlucky.append(document)
                    else:
                        self._finish(plan, document)
        for document in waiting.values():  # stopping
            self._free(plan, document, "stopped")
        fresh = [o for d in documents for hash_, o in d.outcomes.items() if hash_ not in kept]
        others_went = any(not isinstance(outcome, BackendUnavailable) for outcome in fresh)
        return max((self._put_off(plan, document, others_went) for document in unlucky), default=0.0)

    def _answer(self, plan: _Plan, spending: Spending, document: _Document, hash_: bytes, answers: _Answers) -> None:
        answers.put((hash_, self._ask(plan, spending, document, hash_)))

    def _next(self, answers: _Answers) -> tuple[bytes, Outcome | None]:
        while not self._stopped.is_set():
            try:
                return answers.get(timeout=0.2)
            except queue.Empty:
                continue
        return b"", None

    def _pooled(self, plan: _Plan) -> _Pool:
        if self._pool is None:
            self._pool = _Pool(plan.extractor.concurrency)
        return self._pool

    def _ask(self, plan: _Plan, spending: Spending, document: _Document, hash_: bytes) -> Outcome | None:
        """Ask about one passage and keep what was found."""
        if self._stopped.is_set():
            return None
        try:
            known = self.context.ledger.results_get(plan.workspace, plan.backend, [hash_])
            if known:  # another process asked meanwhile
                return known[hash_]
            spending.check()
            found = plan.extractor.extract(document.passages[hash_], spending.spend)
            return self._keep(plan, document, hash_, found)
        except (InvalidAnswer, BackendUnavailable) as error:
            return error
        except Exception as error:
            if not self._stopped.is_set():
                log.exception("extract_failed workspace=%s document=%s", plan.workspace, document.event.subject.id)
            return BackendUnavailable(f"{type(error).__name__}: {error}", suspect=True)

    def _keep(self, plan: _Plan, document: _Document, hash_: bytes, found: Extraction) -> bytes:
        """Keep an extraction, unless its document went meanwhile (an erasure would not find it); the first one wins."""
        packed = _pack(_Kept(list(found.entities), list(found.relations)))
        if self._is_gone(plan, document.event):
            return packed
        self.context.ledger.results_put(plan.workspace, plan.backend, {hash_: packed})
        return self.context.ledger.results_get(plan.workspace, plan.backend, [hash_]).get(hash_, packed)

    # -- what came of a document --------------------------------------------------------------------------------------
    def _put_off(self, plan: _Plan, document: _Document, others_went: bool) -> float:
        """Try a document another time; give it up if it failed often enough in rounds in which others went through.

        Returns for how long to ask nothing.
        """
        key, error = (plan.intake, document.event.seq), document.unavailable[0]
        suspect = others_went and all(one.suspect for one in document.unavailable)
        self._failing[key] = self._failing.get(key, 0) + suspect
        if self._failing[key] >= _TRIES:
            self._finish(plan, document)
            return 0.0
        self._free(plan, document, str(error))
        log.warning("extract_waits workspace=%s document=%s: %s", plan.workspace, document.event.subject.id, error)
        return max(one.retry_after_s for one in document.unavailable)

    def _finish(self, plan: _Plan, document: _Document) -> None:
        """Append what was found in a document, and a dead letter for what was not."""
        failed: list[Exception] = [o for o in document.outcomes.values() if not isinstance(o, bytes)]
        events: list[NewEvent] = []
        hashes: set[str] = set()
        if document.passages and not self._is_gone(plan, document.event):
            for hash_, passage in document.passages.items():
                outcome = document.outcomes[hash_]
                if isinstance(outcome, bytes):
                    try:
                        events.append(self._event(plan, document, passage, _unpack(outcome)))
                        hashes.add(passage.chunk_hash)
                    except Invalid as error:
                        failed.append(error)
        dead = [self._letter(plan, document, failed)] if failed else []
        logged_at = document.event.seq
        if events or dead:
            ledger, now_us = self.context.ledger, self.context.clock.now_us()
            done = ledger.append(plan.workspace, events, recorded_us=now_us, dead=dead)
            logged_at = max(done.positions, default=logged_at)
            if "accepted" in done.outcomes:
                self.on_append(plan.workspace)
        if hashes or document.unchanged:
            known = _Logged(document.position, logged_at, document.unchanged | hashes)
            self._logged[plan.intake, document.event.subject.id] = known
            if len(self._logged) > _REMEMBERED:
                del self._logged[next(iter(self._logged))]
        self._failing.pop((plan.intake, document.event.seq), None)
        self.context.ledger.prepare_save(plan.workspace, plan.claims, {document.event.seq: b""})

    def _free(self, plan: _Plan, document: _Document, why: str) -> None:
        self.context.ledger.prepare_fail(
            plan.workspace, plan.claims, document.event.seq, code="extractor-unavailable", detail=why, final=False
        )

    def _event(self, plan: _Plan, document: _Document, passage: Passage, found: _Kept) -> NewEvent:
        event = document.event
        key = f"{plan.label}\0{event.subject.id}\0{document.position}\0{passage.chunk_hash}"
        data: dict[str, Any] = {
            "document_id": event.subject.id,
            "input_position": document.position,
            "chunk_hash": passage.chunk_hash,
            "extractor": plan.label,
            "entities": found.entities,
            "relations": found.relations,
        }
        # The document's own time: what is erased with the document is refused here too.
        return self._acceptor.accept_data(
            "document.extracted", data, id=_digest(key), source=SOURCE, time_us=event.time_us
        )

    def _letter(self, plan: _Plan, document: _Document, failed: Sequence[Exception]) -> DeadLetter:
        detail = f"{len(failed)} of {len(document.passages)} passages could not be extracted: {failed[0]}"
        return DeadLetter(
            stage="prepare",
            code="extraction-failed",
            detail=detail[:2000],
            policy=plan.runtime.key,
            position=document.event.seq,
            skipped_by=plan.intake,  # no instance: nothing is left out when the log is folded
            event_id=document.event.id,
            source=document.event.source,
            attempts=document.attempts + 1,
            at_us=self.context.clock.now_us(),
        )

    # -- how far ------------------------------------------------------------------------------------------------------
    def _advance(self, plan: _Plan, cursor: int | None) -> bool:
        """Move the position past the documents at the front that are done."""
        ledger, start = self.context.ledger, cursor or 0
        page = ledger.read(plan.workspace, start, _PAGE, types=_UPSERTED)
        seqs = [row.seq for row in page.rows if row.effect == NORMAL]
        done, _ = ledger.prepare_load(plan.workspace, plan.claims, seqs)
        end = start
        for row in page.rows:
            if row.effect == NORMAL and row.seq not in done:
                break
            end = row.seq
        else:
            if len(page.rows) < _PAGE and page.head - end >= _IDLE_MOVE:
                end = page.head
        if end == start:
            return False
        move = IntakeMove(intake=plan.intake, topic=plan.intake, expect=cursor, next=end)
        try:
            ledger.append(plan.workspace, [], recorded_us=self.context.clock.now_us(), moves=[move])
        except IntakeConflict:
            return True  # another process did
        ledger.prepare_drop(plan.workspace, plan.claims, end)
        return True


class _Pool:
    """Daemon threads: a model that does not answer must not keep the process from ending."""

    def __init__(self, threads: int) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._loop, name=f"extract-{number}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def stop(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def passage_hash(passage: Passage) -> bytes:
    """By which the ledger keeps what was found in a passage."""
    return content_hash(f"{passage.title or ''}\0{passage.text}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def used_extractions(
    context: Context, workspace: str, runtime: Runtime, events: Sequence[Event]
) -> set[tuple[str, bytes]]:
    """Return what the ledger keeps of events' passages: (backend, content hash)."""
    identity = backend_identities(runtime.instance).get("extractor")
    if identity is None:
        return set()
    tools = InstanceTools(context, workspace, runtime, keep=False)
    found = set()
    for event in events:
        try:
            passages = runtime.policy.passages(event, tools)
        except (EventError, ConfigError):
            continue
        found |= {(backend_name("extractor", identity), passage_hash(one)) for one in passages}
    return found
