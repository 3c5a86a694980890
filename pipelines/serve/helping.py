"""Backends that help with a question: keywords before it is looked up, summaries and an order of what was found.

Each may fail, be slow or have used up its budget: then the question is answered as if there were none, and
``degraded`` says so. What they answered is kept for a while under everything that it was made from, as answers are:

- keywords under the question;
- scores under the question and the passages' texts;
- a summary under what it sums up: the entity or relation, its sentences and its passages as they stand now. When a
  mention goes, the sentences are others, so what was summed up from it is not found again. Summaries are made beside
  the questions: the first one that would show one asks for it and shows the sentences.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from streamfold.core.caches import emptied_on_erasure
from streamfold.core.errors import BackendUnavailable
from streamfold.core.policy import (
    Helping,
    Keywords,
    Retrieval,
    RetrievedContext,
    ScoredChunk,
    ScoredEntity,
    ScoredRelation,
    Spend,
)
from streamfold.core.spending import Spending
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.answers import NoAnswer
from streamfold.pipelines.serve.fair import FairPool
from streamfold.pipelines.serve.logs import logger

_NO_SUMMARIES = "summaries-not-made"
_BY_NAMES = ("local", "global", "hybrid")
_CANDIDATES = 20
"""Passages that a reranker chooses from, where fewer are asked for."""
_SUMMED_UP, _LEAST_CHARACTERS = 8, 160
"""How many entities and relations of a question get summaries, and the shortest sentences that are worth one."""
_KEPT, _KEPT_S, _MOST_ASKED, _AGAIN_S = 2048, 3600.0, 64, 30.0
_encode = msgspec.json.Encoder().encode
T = TypeVar("T", ScoredEntity, ScoredRelation)


class Helper:
    """One kind of backend in one serving process; asks about the same thing once at a time."""

    def __init__(self, node: Node, kind: str) -> None:
        self._node, self._kind = node, kind
        self._values = node.settings.backends.get(kind)
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, Any]] = OrderedDict()
        self._failed: OrderedDict[bytes, float] = OrderedDict()
        self._asked: dict[bytes, Future[Any]] = {}
        self._forgotten = 0
        self._log = logger()
        emptied_on_erasure(self.forget)
        self._pool = None if self._values is None else FairPool(self.backend.concurrency, kind)

    @property
    def is_configured(self) -> bool:
        return self._values is not None

    @property
    def backend(self) -> Helping:
        made: Helping = self._node.registry.make_backend(self._kind, self._values or {})
        return made

    def close(self) -> None:
        if self._pool is not None:
            if close := getattr(self.backend, "close", None):
                close()
            self._pool.close()

    def forget(self) -> None:
        """Keep nothing, also of what is being asked just now."""
        with self._lock:
            self._kept.clear()
            self._forgotten += 1

    def key(self, workspace: str, *parts: Any) -> bytes:
        identity = json.dumps(self._node.registry.backend_identity(self._kind), sort_keys=True)
        return hashlib.blake2b(_encode((workspace, identity, parts)), digest_size=16).digest()

    def known(self, key: bytes) -> Any:
        """What was answered, if it is kept."""
        with self._lock:
            at, value = self._kept.get(key, (0.0, None))
        return value if value is not None and time.monotonic() - at < _KEPT_S else None

    def has_failed(self, key: bytes) -> bool:
        """Whether it failed just now."""
        with self._lock:
            return time.monotonic() - self._failed.get(key, -_AGAIN_S) < _AGAIN_S

    def start(self, workspace: str, key: bytes, ask: Callable[[Any, Spend], Any]) -> Future[Any]:
        """Ask in a thread; the future has the answer, or one of ``NoAnswer``."""
        assert self._pool is not None
        with self._lock:
            there = self._asked.get(key)
            if there is not None:
                return there
            if len(self._asked) >= _MOST_ASKED:
                raise BackendUnavailable(f"{len(self._asked)} questions wait for the {self._kind} backend")
            future = self._pool.submit(workspace, self._run, workspace, key, ask, self._forgotten)
            self._asked[key] = future
        future.add_done_callback(lambda _: self._ended(key))
        return future

    def _ended(self, key: bytes) -> None:
        with self._lock:
            self._asked.pop(key, None)

    def _run(self, workspace: str, key: bytes, ask: Callable[[Any, Spend], Any], forgotten: int) -> Any:
        node, backend = self._node, self.backend
        try:
            spending = Spending(node.ledger, node.context.clock, workspace, self._kind, backend.budget)
            spending.check()
            value = ask(backend, spending.spend)
        except Exception as error:
            with self._lock:
                _put(self._failed, key, time.monotonic())
            self._log.warning("no_help", workspace=workspace, kind=self._kind, error=repr(error))
            if isinstance(error, NoAnswer):
                raise
            raise BackendUnavailable(f"the {self._kind} backend failed: {type(error).__name__}") from error
        with self._lock:
            self._failed.pop(key, None)
            if forgotten == self._forgotten:
                _put(self._kept, key, (time.monotonic(), value))
        return value

    async def answer(self, workspace: str, key: bytes, ask: Callable[[Any, Spend], Any]) -> Any:
        """Return what is kept, or ask and wait. Raises one of ``NoAnswer``."""
        if (value := self.known(key)) is not None:
            return value
        asked = asyncio.wrap_future(self.start(workspace, key, ask))
        asked.add_done_callback(lambda one: one.cancelled() or one.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(asked), self.backend.patience_s)
        except TimeoutError:
            raise BackendUnavailable(f"the {self._kind} backend took longer than patience_s") from None


def _put(into: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
    into[key] = value
    into.move_to_end(key)
    while len(into) > _KEPT:
        into.popitem(last=False)


@dataclasses.dataclass(slots=True)
class Help:
    """What backends found out for one question.

    Attributes
    ----------
    scores : by chunk id, of the passages that were reranked; None: there is no other order.
    candidates : how many passages those are taken from.
    degraded : what could not be had.
    """

    keywords: Keywords | None = None
    scores: dict[str, float] | None = None
    candidates: int = 0
    degraded: list[str] = dataclasses.field(default_factory=list)

    def ordered(self, found: RetrievedContext, chunks: Sequence[ScoredChunk], most: int) -> RetrievedContext:
        """Put the passages that are found now in order; those that came since stand last."""
        scores = self.scores or {}
        best = sorted(chunks, key=lambda one: -scores.get(one.chunk_id, -1.0))[:most]
        scored = [dataclasses.replace(one, score=scores.get(one.chunk_id, 0.0)) for one in best]
        return dataclasses.replace(found, chunks=scored)


Look = Callable[[Keywords | None, int], Awaitable[Sequence[ScoredChunk]]]
"""Look up so many passages for keywords."""


class Helpers:
    """All helping backends of one serving process."""

    def __init__(self, node: Node) -> None:
        self.finder = Helper(node, "keywords")
        self.reranker = Helper(node, "reranker")
        self.summarizer = Helper(node, "summarizer")
        self._all = (self.finder, self.reranker, self.summarizer)
        self.are_configured = any(one.is_configured for one in self._all)

    def close(self) -> None:
        for one in self._all:
            one.close()

    def forget(self) -> None:
        """Something was erased: keep nothing that may quote it."""
        for one in self._all:
            one.forget()

    async def before(self, workspace: str, request: Retrieval, look: Look) -> Help:
        """Ask for keywords where they decide anything, then for an order of what is found."""
        help = Help()
        by_names = request.mode in _BY_NAMES or (request.mode == "mix" and len(request.include) > 1)
        if self.finder.is_configured and by_names:
            try:
                help.keywords = await self._keywords(workspace, request.query)
            except NoAnswer:
                help.degraded.append("keywords-not-found")
        # a budget leaves no choice: what fits it was taken in order
        if self.reranker.is_configured and "chunks" in request.include and request.budget_tokens is None:
            help.candidates = max(_CANDIDATES, request.top_k)
            try:
                chunks = await look(help.keywords, help.candidates)
                help.scores = await self._scores(workspace, request.query, chunks)
            except NoAnswer:
                help.degraded.append("not-reranked")
        return help

    async def _keywords(self, workspace: str, question: str) -> Keywords:
        key = self.finder.key(workspace, question)
        found: Keywords = await self.finder.answer(workspace, key, lambda b, spend: b.keywords(question, spend))
        return found

    async def _scores(self, workspace: str, question: str, chunks: Sequence[ScoredChunk]) -> dict[str, float]:
        texts = [f"{one.title}: {one.text}" if one.title else one.text for one in chunks]
        if not texts:
            return {}
        key = self.reranker.key(workspace, question, texts)
        scores: list[float] = await self.reranker.answer(
            workspace, key, lambda b, spend: b.rerank(question, texts, spend)
        )
        return {one.chunk_id: score for one, score in zip(chunks, scores, strict=True)}

    def after(self, workspace: str, found: RetrievedContext, help: Help) -> RetrievedContext:
        """Put summaries in the place of sentences, as far as they are made, and ask for others; waits for nothing."""
        if not self.summarizer.is_configured:
            return found
        left = _SUMMED_UP

        def summed_up(one: T, id_: str, name: str) -> T:
            nonlocal left
            if left <= 0 or len(one.description) < _LEAST_CHARACTERS:
                return one
            left -= 1
            key = self.summarizer.key(workspace, id_, name, one.description, one.chunk_ids)
            summary = self.summarizer.known(key)
            if summary is None:
                self._ask_for_summary(workspace, key, name, one.description, help)
                return one
            return dataclasses.replace(one, description=summary)

        entities = [summed_up(one, one.entity_id, one.name) for one in found.entities]
        relations = [summed_up(one, one.relation_id, f"{one.source} – {one.target}") for one in found.relations]
        return RetrievedContext(chunks=found.chunks, entities=entities, relations=relations)

    def _ask_for_summary(self, workspace: str, key: bytes, name: str, sentences: str, help: Help) -> None:
        fails = self.summarizer.has_failed(key)
        if not fails:
            try:
                self.summarizer.start(workspace, key, lambda b, spend: b.summarize(name, sentences, spend))
            except BackendUnavailable:
                fails = True
        if fails and _NO_SUMMARIES not in help.degraded:
            help.degraded.append(_NO_SUMMARIES)
