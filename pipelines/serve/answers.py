"""Generated answers: a language model's, from what retrieval found, whole or as a stream; the last ones are kept.

An answer is kept under its question, its generator and the whole context that it was made from, as it was retrieved
just now. Whatever update, deletion or promotion changes what is served changes the context, hence the key: an answer
is given again only while everything it rests on stands, and events about something else do not spoil it.

Models take seconds, so they are asked in threads of their own: retrieval never waits for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from streamfold.core.caches import emptied_on_erasure
from streamfold.core.errors import BackendUnavailable, InvalidAnswer
from streamfold.core.policy import Generator, RetrievedContext, ScoredChunk
from streamfold.core.spending import Spending
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.fair import FairPool
from streamfold.pipelines.serve.logs import logger

_KEPT, _KEPT_S = 512, 600.0
_CITED = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
_encode = msgspec.json.Encoder().encode
NoAnswer = (BackendUnavailable, InvalidAnswer)


class Answers:
    """The generator of one serving process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._values = node.settings.backends.get("generator")
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._forgotten = 0
        self._log = logger()
        emptied_on_erasure(self.forget)
        self._pool: FairPool | None = None
        if self._values is not None:
            self._pool = FairPool(self.generator.concurrency, "answer")

    @property
    def is_configured(self) -> bool:
        return self._values is not None

    @property
    def generator(self) -> Generator:
        made: Generator = self._node.registry.make_backend("generator", self._values or {})
        return made

    def close(self) -> None:
        if self._pool is None:
            return
        if close := getattr(self.generator, "close", None):
            close()  # what waits to be asked again is given up
        self._pool.close()

    async def whole(self, workspace: str, question: str, context: RetrievedContext) -> str:
        """Return an answer. Raises one of ``NoAnswer``."""
        return "".join([piece async for piece in self.pieces(workspace, question, context)])

    async def pieces(self, workspace: str, question: str, context: RetrievedContext) -> AsyncIterator[str]:
        """Yield an answer as it comes. Raises one of ``NoAnswer``, also midway; whoever reads no further ends it."""
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        given_up = threading.Event()

        def put(item: str | Exception | None) -> None:
            if not given_up.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for piece in self._made(workspace, question, context):
                    if given_up.is_set():
                        return
                    put(piece)
                put(None)
            except NoAnswer as error:
                put(error)
            except Exception as error:
                self._log.error("generator_failed", workspace=workspace, error=repr(error), exc_info=error)
                put(BackendUnavailable(f"the generator failed: {type(error).__name__}"))

        future = self._pool.submit(workspace, work)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            given_up.set()
            future.cancel()

    def _made(self, workspace: str, question: str, context: RetrievedContext) -> Iterator[str]:
        """Answer from what is kept, or ask and keep what was answered to its end."""
        key = self._key(workspace, question, context)
        with self._lock:
            at, text = self._kept.get(key, (0.0, ""))
        if text and time.monotonic() - at < _KEPT_S:
            yield text
            return
        node, generator = self._node, self.generator
        spending = Spending(node.ledger, node.context.clock, workspace, "generator", generator.budget)
        spending.check()
        said: list[str] = []
        forgotten = self._forgotten
        for piece in generator.stream(question, context, spending.spend):
            said.append(piece)
            yield piece
        with self._lock:
            if forgotten != self._forgotten:
                return
            self._kept[key] = (time.monotonic(), "".join(said))
            self._kept.move_to_end(key)
            oldest_s = time.monotonic() - _KEPT_S
            while self._kept and (len(self._kept) > _KEPT or next(iter(self._kept.values()))[0] < oldest_s):
                self._kept.popitem(last=False)

    def forget(self) -> None:
        """Something was erased: keep nothing that may quote it, also of what is being said just now."""
        with self._lock:
            self._kept.clear()
            self._forgotten += 1

    def _key(self, workspace: str, question: str, context: RetrievedContext) -> bytes:
        identity = self._node.registry.backend_identity("generator")
        shown: Sequence[Any] = (
            workspace, json.dumps(identity, sort_keys=True), question,
            [(one.chunk_id, one.title, one.text) for one in context.chunks],
            [(one.name, one.type, one.description) for one in context.entities],
            [(one.source, one.target, one.description, one.valid_to_us) for one in context.relations],
        )  # fmt: skip
        return hashlib.blake2b(_encode(shown), digest_size=16).digest()


def cited(text: str, chunks: Sequence[ScoredChunk]) -> dict[str, Any]:
    """Return an answer with the passages that it cites, in order of their first mention."""
    numbers = [int(number) for group in _CITED.findall(text) for number in group.split(",")]
    there = dict.fromkeys(number for number in numbers if 1 <= number <= len(chunks))
    found = [chunks[number - 1] for number in there]
    return {"text": text, "citations": [{"chunk_id": c.chunk_id, "document_id": c.document_id} for c in found]}
