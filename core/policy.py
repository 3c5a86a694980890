"""The contract of an update policy, and what it serves with.

A policy is a class: what it handles, what it remembers (``stores``), how it folds one event. Core owns the rest:
order, exactly-once, durability, the view, replay. A policy sees the event, its prepared value and its stores (and
those of policies it ``reads``), nothing else; clock and generator come with ``stores``.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamfold.core.errors import EventError, NeedsRebuild
from streamfold.core.events.model import Event, Subject
from streamfold.core.events.types import ExtractedEntity, ExtractedRelation
from streamfold.core.stores.declare import Declaration

Prepared = Any
"""What ``prepare`` returns: any value with a stored form (Structs, numbers, str, bytes, numpy arrays)."""


# -- backends: costly pure functions, their results kept by content hash ---------------------------
class Encoder(Protocol):
    """Text to vectors. ``name`` and ``version`` identify the function: a change of either is a new instance."""

    name: str
    version: str
    dim: int

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(n, dim) float32``, unit rows; pure: equal texts give equal rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a text: ``text == document[start:end]`` (characters)."""

    text: str
    start: int
    end: int


class Chunker(Protocol):
    """Text to chunks; deterministic."""

    name: str
    version: str

    def split(self, text: str) -> list[Chunk]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a call of a language model used."""

    tokens_in: int = 0
    tokens_out: int = 0


Spend = Callable[[Usage], None]
"""Called after each call of a model, whatever came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Most that a workspace may spend on a backend; 0: no limit. Days are UTC; prices are per million tokens."""

    tokens_per_day: int = 0
    tokens_total: int = 0
    usd_per_day: float = 0.0
    usd_total: float = 0.0
    usd_per_million_in: float = 0.0
    usd_per_million_out: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document as an extractor is asked about it; ``chunk_hash`` covers title and text."""

    chunk_hash: str
    title: str | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Entities and relations found in a passage."""

    entities: Sequence[ExtractedEntity] = ()
    relations: Sequence[ExtractedRelation] = ()


class Extractor(Protocol):
    """Passages to entities and relations; slow, and not a function: its results are logged as events.

    ``asks``: False for the one that asks nobody, because the policy itself finds names. ``concurrency``: how many
    passages it takes at a time.
    """

    name: str
    version: str
    asks: bool
    concurrency: int
    budget: Budget

    def extract(self, passage: Passage, spend: Spend) -> Extraction:
        """Ask. Raises ``InvalidAnswer`` (this passage will not do) or ``BackendUnavailable`` (nothing will, now)."""
        ...

    def estimate(self, passage: Passage) -> tuple[int, Usage]:
        """How many calls a passage takes, and about how many tokens."""
        ...


class Generator(Protocol):
    """Question and context to an answer that cites passages as ``[1]``, ``[2]`` … in the context's order."""

    name: str
    version: str
    concurrency: int
    budget: Budget

    def stream(self, question: str, context: RetrievedContext, spend: Spend) -> Iterator[str]:
        """Answer piece by piece. Raises ``BackendUnavailable`` or ``InvalidAnswer``, also midway."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Keywords:
    """What a question is about: ``high`` level (themes, for relations) and ``low`` level (names, for entities)."""

    high: tuple[str, ...] = ()
    low: tuple[str, ...] = ()


class Helping(Protocol):
    """What a question may be helped by; it is answered without where this fails or takes ``patience_s``.

    Each method raises ``BackendUnavailable`` or ``InvalidAnswer``.
    """

    name: str
    version: str
    concurrency: int
    patience_s: float
    budget: Budget


class KeywordFinder(Helping, Protocol):
    """Backend ``keywords``: question to keywords."""

    def keywords(self, question: str, spend: Spend) -> Keywords: ...


class Summarizer(Helping, Protocol):
    """Backend ``summarizer``: what sentences say of an entity or a relation, in a few."""

    def summarize(self, name: str, sentences: str, spend: Spend) -> str: ...


class Reranker(Helping, Protocol):
    """Backend ``reranker``: how well passages answer a question, 0…1 each, in their order."""

    def rerank(self, question: str, passages: Sequence[str], spend: Spend) -> list[float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A backend on offer: ``make(config)`` builds it (may import heavy libraries; called once per process).

    ``operational``: keys of its configuration that say how it is reached, not what it computes. They are no part of
    an instance's identity, and always those of today's settings.
    """

    kind: str
    name: str
    make: Callable[[Mapping[str, Any]], Any]
    doc: str = ""
    operational: tuple[str, ...] = ()


class Tools(Protocol):
    """The backends of one instance, wrapped so that their results are kept by content hash."""

    @property
    def encoder(self) -> Encoder: ...
    @property
    def chunker(self) -> Chunker: ...
    @property
    def extractor_id(self) -> str | None:
        """Who extracts for this instance, as its ``document.extracted`` events say; None: nobody is asked."""
        ...


# -- what a policy sees ----------------------------------------------------------------------------
class Refusal(NamedTuple):
    """An event that was folded, and turns out to be of no use."""

    position: int
    source: str
    event_id: str
    error: EventError


class Stores(Protocol):
    """The instance's live stores by name, the fold's clock and generator, and the policies it reads."""

    now_us: int
    """The fold's clock: the event's ``recordedtime``."""
    stack: str
    """What folds together here, in which versions: exposures of a live A/B name their arms so."""

    def __getitem__(self, name: str) -> Any: ...
    def of(self, policy: str) -> ReadOnly:
        """Server and stores of a policy in ``reads``, as they were before this event; read-only."""
        ...

    def refuse(self, past: Refusal) -> None:
        """Make a dead letter of an event that was folded before, in the commit of this one.

        It counts as skipped from now on, so whoever folds afresh leaves it out: the stores may hold nothing of it.
        """
        ...

    @property
    def rng(self) -> np.random.Generator:
        """A generator seeded by (instance, seq), made when asked for."""
        ...


class ReadOnly(Protocol):
    """A policy's stores and server, for reading."""

    server: Any

    def __getitem__(self, name: str) -> Any: ...


class View(Protocol):
    """The read side of one instance: its stores at the view's cut, other live policies, and the backends."""

    tools: Tools

    def __getitem__(self, name: str) -> Any: ...
    def of(self, policy: str) -> ReadOnly:
        """A policy of its own group, or any live one of the workspace (no group needed). Raises ``KeyError``."""
        ...


# -- what a policy serves --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """One retrieval request: question, how many chunks, by which sources (``vector``, ``bm25``), which rows."""

    query: str
    top_k: int = 10
    mode: str = "naive"
    sources: tuple[str, ...] = ("vector", "bm25")
    matches: Callable[[Mapping[str, Any]], bool] | None = None
    """Filter on a document's fields (``document_id``, ``metadata``): True keeps it."""
    include: tuple[str, ...] = ("chunks",)
    """What is wanted: ``chunks``, ``entities``, ``relations``."""
    as_of_us: int | None = None
    """Only what was valid at this time."""
    budget_tokens: int | None = None
    """Most of the context, counted at four characters a token; None: the retriever's own bounds."""
    keywords: Keywords | None = None
    """What somebody found the question to be about; None: the retriever finds that itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredChunk:
    """One cited passage."""

    chunk_id: str
    document_id: str
    title: str | None
    text: str
    start: int
    end: int
    score: float
    sources: tuple[str, ...] = ()
    path: tuple[Mapping[str, str], ...] = ()
    url: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredEntity:
    """Something that documents name; ``description``: sentences of the documents that name it now."""

    entity_id: str
    name: str
    description: str
    score: float
    type: str | None = None
    chunk_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRelation:
    """Two entities that documents relate; ``weight``: in how many chunks."""

    relation_id: str
    source: str
    target: str
    description: str
    score: float
    weight: float
    keywords: tuple[str, ...] = ()
    valid_from_us: int | None = None
    valid_to_us: int | None = None
    chunk_ids: tuple[str, ...] = ()


def relation_ends(relation_id: str, entity_ids: Container[str]) -> tuple[str, str] | None:
    """Return the two entities that a relation's id (``ONE|OTHER``) names, if both are among ``entity_ids``.

    >>> relation_ends("a|b|c", {"a|b", "c"})
    ('a|b', 'c')
    """
    parts = relation_id.split("|")
    for i in range(1, len(parts)):
        one, other = "|".join(parts[:i]), "|".join(parts[i:])
        if one in entity_ids and other in entity_ids:
            return one, other
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievedContext:
    """What a graph retriever finds for one question, each list best first."""

    chunks: Sequence[ScoredChunk] = ()
    entities: Sequence[ScoredEntity] = ()
    relations: Sequence[ScoredRelation] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCandidate:
    """Another name that may be the same entity; an ``entity.merged`` event makes it so."""

    entity_id: str
    reason: str
    score: float


class Merge(NamedTuple):
    """A name that is surely the entity ``into``: both are keys."""

    name: str
    into: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """Entities and relations around one entity, nearest first; ``truncated``: there are more than asked for."""

    entities: Sequence[ScoredEntity]
    relations: Sequence[ScoredRelation]
    truncated: bool
    merge_candidates: Sequence[MergeCandidate] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """What ``GET /v1/documents/{id}`` shows."""

    document_id: str
    fields: Mapping[str, Any]
    content_hash: str
    event_id: str
    position: int
    updated_us: int
    chunks: tuple[Chunk, ...] = ()
    chunk_ids: tuple[str, ...] = ()
    text_position: int | None = None
    """Where its text was sent: what is told of a chunk names it (``document.extracted``)."""


@runtime_checkable
class Retriever(Protocol):
    """Answers retrieval requests and shows documents."""

    modes: tuple[str, ...]

    def retrieve(self, request: Retrieval) -> list[ScoredChunk]: ...
    def document(self, document_id: str) -> StoredDocument | None: ...
    def documents(self, *, after: str, limit: int) -> list[StoredDocument]:
        """A page in order of id."""
        ...


@runtime_checkable
class ContextRetriever(Retriever, Protocol):
    """A retriever that answers with entities and relations too, and shows the graph."""

    def context(self, request: Retrieval) -> RetrievedContext: ...
    def graph(
        self, entity_id: str, *, depth: int, limit: int, matches: Callable[[Mapping[str, Any]], bool] | None
    ) -> Neighbourhood | None:
        """What lies around an entity in the documents that ``matches`` keeps; None where there is none."""
        ...

    def names(self) -> list[tuple[str, int]]:
        """Every entity's id, and in how many chunks it is named; in no particular order."""
        ...

    def entities(
        self, entity_ids: Sequence[str], *, matches: Callable[[Mapping[str, Any]], bool] | None
    ) -> list[ScoredEntity]:
        """Describe entities, with all chunks that name them; those that no document names are left out."""
        ...

    def labels(self, entity_ids: Sequence[str], *, matches: Callable[[Mapping[str, Any]], bool] | None) -> list[str]:
        """Return entities' names as they are written, without those that no document names."""
        ...

    def pairs(self) -> list[tuple[str, str]]:
        """Which entities are related, as pairs of their ids; in no particular order."""
        ...

    def relations(
        self, pairs: Sequence[tuple[str, str]], *, matches: Callable[[Mapping[str, Any]], bool] | None
    ) -> list[ScoredRelation]:
        """Describe relations, with all chunks that support them; those that no document supports are left out."""
        ...


@runtime_checkable
class NameMerger(Protocol):
    """Says which names are surely one entity, so that the service merges them by events of its own."""

    @property
    def merges_by_itself(self) -> bool:
        """Whether it is set to; nothing is asked of it otherwise."""
        ...

    def merges(self, document_id: str) -> Sequence[Merge]:
        """Which of the names in a document are surely the same as others; bounded work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRequest:
    """What to list candidates for.

    ``at_us``: the time of the request; ``user``: whom for (see ``user_key``; empty: nobody); ``seeds``: items and how
    much the user likes them (below 0: not at all), newest first.
    """

    n: int
    category: str | None = None
    half_life_s: float | None = None
    user: str = ""
    seeds: Sequence[tuple[str, float]] = ()
    at_us: int = 0


@runtime_checkable
class CandidateSource(Protocol):
    """Lists items with scores, best first."""

    def candidates(self, request: CandidateRequest) -> list[tuple[str, float]]: ...


class Candidates:
    """A candidate source from a function: ``Candidates(lambda request: view["score"].top(request.n))``."""

    def __init__(self, source: Callable[[CandidateRequest], Iterable[tuple[str, float]]]) -> None:
        self._source = source

    def candidates(self, request: CandidateRequest) -> list[tuple[str, float]]:
        return list(self._source(request))


Server = Any
"""Retriever, CandidateSource, Catalogue, Ranker, SimilarItems, Classifier or Corrector (one object may be several)."""


@runtime_checkable
class Settles(Protocol):
    """A server that works something out from its stores, so that requests find it done (``core/views/settle.py``)."""

    def unsettled(self) -> bool:
        """Whether something that is asked for has changed; called after changes, costs next to nothing."""
        ...

    def look(self) -> Callable[[], None]:
        """Read what has changed; return the work that is left, which does not look at the stores."""
        ...


Batch = Sequence[tuple[Event, Prepared]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoConfig:
    """The configuration of a policy that has none."""


class Policy:
    """Base class of update policies. Required: ``name``, ``version``, ``handles``, ``stores``, ``fold``."""

    name: ClassVar[str]
    version: ClassVar[int]
    handles: ClassVar[tuple[str, ...]]
    reads: tuple[str, ...] = ()
    """Instances whose stores and servers the fold may read. Class attribute, or set in ``__init__`` when it depends on
    the configuration."""
    backends: ClassVar[tuple[str, ...]] = ()
    """Kinds of backends that ``prepare`` or the server use; their identity is pinned with the instance."""
    newest_suffices: ClassVar[bool] = False
    """Of upserts, patches and deletions of one subject, those before its newest upsert may be left out of a fold
    without changing what comes of it, and all of them when the newest is a deletion: a compacted log is as good as a
    whole one."""
    measures: ClassVar[bool] = False
    """Its server is a ``QualityReport``: a changed declaration of its group takes over by itself only when the gate,
    which compares two such reports, lets it pass."""
    hears: tuple[str, ...] = ()
    """Of ``reads``, those of whom ``fold_gathered`` is told what theirs returned; the others are read in ``gather``."""
    averages_with: tuple[str, ...] = ()
    """Of ``reads``, those with whose weights this policy's are averaged when it serves: their base has to be the same
    (``check_reads`` raises ``WrongBase``; core compares the backends), also with what is live of these names."""
    may_use: ClassVar[tuple[str, ...]] = ()
    """Kinds that are pinned too where the settings configure them: ``extractor``."""
    Config: ClassVar[type] = NoConfig
    stores: tuple[Declaration, ...]
    """Class attribute, or set in ``__init__`` when it depends on the configuration."""

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else self.Config()

    def check_reads(self, read: Mapping[str, Policy]) -> None:
        """Raise ``ConfigError`` where an instance in ``reads`` is of a kind that this policy cannot read."""

    def prepare(self, event: Event, tools: Tools) -> Prepared | None:
        """Pure and costly: chunk, embed. Runs in parallel, in any order, perhaps more than once."""
        return None

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Prepared | None]:
        """Prepare several events in one go (one call of the encoder); default: a loop over ``prepare``."""
        return [self.prepare(event, tools) for event in events]

    def passages(self, event: Event, tools: Tools) -> Sequence[Passage]:
        """What an extractor is to be asked about an event (policies that ``may_use`` one); pure."""
        return ()

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Ordered and cheap: change the stores by one event. ``EventError`` skips the event, without a trace."""
        raise NotImplementedError(f"policy {self.name!r} must define fold(event, prepared, stores)")

    def fold_batch(self, batch: Batch, stores: Stores) -> None:
        """Fold several events at once; must equal the loop, which is the default. Used in groups of one policy."""
        for event, prepared in batch:
            self.fold(event, prepared, stores)

    def gather(self, event: Event, stores: Stores) -> Any | None:
        """Read what an event tells this policy, before anybody folds it; a pure read, then :meth:`fold_gathered`.

        With both, a policy takes many events in one call in a group of several too; what they do together must equal
        the loop over :meth:`fold`. None: this event has to be folded by itself, after those gathered before it (as is
        one that raises). Used where nobody reads this policy but who ``hears`` it, and all whom it hears gather, too.
        """
        return None

    def fold_gathered(self, gathered: Sequence[Any], told: Mapping[str, Any], stores: Stores) -> Any:
        """Fold what was gathered, in order; ``told``: what this returned for the same events in those it ``hears``.

        Others' stores are further on by now, and the clock stands at the last event: read both in :meth:`gather`. No
        ``EventError`` here: what is to be skipped is to raise in :meth:`gather`.
        """
        raise NotImplementedError(f"policy {self.name!r} must define fold_gathered, as it defines gather")

    def skipped(self, event: Event, stores: Stores) -> None:
        """The event was skipped for this instance: withdraw what it made stale."""

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove a subject's traces, exactly; default: ask for a rebuild."""
        raise NeedsRebuild(f"policy {self.name!r} folds afresh to forget {subject.kind} {subject.id!r}")

    def serve(self, view: View) -> Server | None:
        """Make what answers requests from the view; called once per view. Serving never writes."""
        return None


def prepares(policy: Policy) -> bool:
    """Whether the policy defines a prepare step."""
    kind = type(policy)
    return kind.prepare is not Policy.prepare or kind.prepare_batch is not Policy.prepare_batch
