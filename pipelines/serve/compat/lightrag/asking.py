"""Questions: ``query``, ``query/stream`` and ``query/data``, one retrieval behind all three.

LightRAG's ``top_k`` counts entities and relations, ``chunk_top_k`` chunks. Its keywords, where a client brings them,
are searched for with the question. History, prompt and response type are for the model that writes the answer.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from starlette.responses import Response, StreamingResponse

from streamfold.core.policy import Retrieval, RetrievedContext, ScoredChunk, ScoredEntity, ScoredRelation
from streamfold.pipelines.serve.answers import NoAnswer
from streamfold.pipelines.serve.ask import retrieved
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.lightrag.answers import answered
from streamfold.pipelines.serve.compat.lightrag.dialect import Body, endpoint, refused, server
from streamfold.pipelines.serve.compat.lightrag.shelf import file_path
from streamfold.pipelines.serve.compat.lightrag.sources import Sources
from streamfold.pipelines.serve.problems import Problem, at

TOP_K, CHUNK_TOP_K = 40, 20
_CHARACTERS_PER_TOKEN = 4
_LEAST = 3
_DONE = "Query executed successfully"
_NO_CONTEXT = RetrievedContext()
_NO_ANSWER = "the language model gave no answer, or not to its end: try again, or ask with only_need_context"
_NOTHING = "No relevant context found for the query."
_Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class Question(Body, kw_only=True):
    """LightRAG's ``QueryRequest``."""

    query: Annotated[str, msgspec.Meta(max_length=32_768)]
    mode: Literal["local", "global", "hybrid", "naive", "mix", "bypass"] = "mix"
    only_need_context: bool | None = None
    only_need_prompt: bool | None = None
    response_type: str | None = None
    top_k: _Count | None = None
    chunk_top_k: _Count | None = None
    max_entity_tokens: _Tokens | None = None
    max_relation_tokens: _Tokens | None = None
    max_total_tokens: _Tokens | None = None
    hl_keywords: list[str] | None = None
    ll_keywords: list[str] | None = None
    conversation_history: list[dict[str, Any]] | None = None
    user_prompt: str | None = None
    disable_user_prompt_prefix: bool | None = None
    enable_rerank: bool | None = None
    include_references: bool | None = True
    include_chunk_content: bool | None = False
    include_progress: bool | None = False
    stream: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a question found; chunks and references as LightRAG shows them.

    ``total``: how many entities and relations there were before budgets took some away.
    """

    mode: str
    entities: Sequence[ScoredEntity] = ()
    relations: Sequence[ScoredRelation] = ()
    chunks: Sequence[Mapping[str, str]] = ()
    references: Sequence[Mapping[str, Any]] = ()
    total: tuple[int, int, int] = (0, 0, 0)
    data: Mapping[str, Any] | None = None
    context: RetrievedContext = _NO_CONTEXT

    @property
    def is_empty(self) -> bool:
        return not (self.entities or self.relations or self.chunks)


# -- routes ------------------------------------------------------------------------------------------------------------
async def query(call: Call) -> Response:
    """Answer in one piece."""
    started = time.perf_counter()
    body = await _question(call)
    found = await _ask(call, body)
    pieces, generated = await answered(call, body, found)
    try:
        text = "".join([piece async for piece in pieces]) or _NOTHING
    except NoAnswer:
        raise Problem("generator-unavailable", _NO_ANSWER) from None
    value = {
        "response": text,
        "references": [{"content": None, **one} for one in _references(body, found)],
        "response_time": round(time.perf_counter() - started, 3),
        "llm_generated": generated,
    }
    return answer(value if body.include_references else value | {"references": None})


async def stream(call: Call) -> Response:
    """Answer in lines of JSON: the references, then the text in pieces; with ``stream: false`` both in one line."""
    started = time.perf_counter()
    body = await _question(call)
    found = await _ask(call, body)
    pieces, generated = await answered(call, body, found)
    references = _references(body, found) if body.include_references else None

    async def lines() -> AsyncIterator[bytes]:
        for step in ("retrieving", "generating") if body.include_progress else ():
            yield _line({"progress": step})
        try:
            async for line in told():
                yield line
        except NoAnswer:
            yield _line({"error": _NO_ANSWER})
        if body.include_progress:
            yield _line({"response_time": round(time.perf_counter() - started, 3)})

    async def told() -> AsyncIterator[bytes]:
        if body.stream is False:
            value = {"response": "".join([piece async for piece in pieces]) or _NOTHING, "llm_generated": generated}
            yield _line(value | ({"references": references} if references is not None else {}))
        else:
            if references is not None:
                yield _line({"references": references})
            async for piece in pieces:
                yield _line({"response": piece} | ({} if generated else {"llm_generated": False}))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


async def data(call: Call) -> Response:
    """What an answer would be written from, as data."""
    body = await _question(call)
    found = await _ask(call, body, data=True)
    keywords = {"high_level": body.hl_keywords or [], "low_level": body.ll_keywords or []}
    if found.data is None:  # bypass
        nothing: dict[str, Any] = {"entities": [], "relationships": [], "chunks": [], "references": []}
        metadata = {"query_mode": found.mode, "keywords": keywords}
        return answer({"status": "success", "message": _DONE, "data": nothing, "metadata": metadata})
    if found.is_empty:
        reason = {"failure_reason": "no_results", "mode": body.mode}
        return answer({"status": "failure", "message": "Query returned no results", "data": {}, "metadata": reason})
    metadata = {"query_mode": found.mode, "keywords": keywords, "processing_info": _counts(found)}
    return answer({"status": "success", "message": _DONE, "data": found.data, "metadata": metadata})


def _counts(found: Found) -> dict[str, int]:
    if found.mode == "naive":
        return {"total_chunks_found": found.total[2], "final_chunks_count": len(found.chunks)}
    return {
        "total_entities_found": found.total[0],
        "total_relations_found": found.total[1],
        "entities_after_truncation": len(found.entities),
        "relations_after_truncation": len(found.relations),
        "merged_chunks_count": found.total[2],
        "final_chunks_count": len(found.chunks),
    }


def refused_data(problem: Problem, request_id: str) -> Response:
    """Refuse as ``query/data`` does: what is not valid is 400, in the shape of its answers."""
    if problem.status not in (400, 422):
        return refused(problem, request_id)
    message = f"Validation error: {problem.detail}"
    return answer({"status": "failure", "message": message, "data": {}, "metadata": {}}, 400, problem.headers)


# -- retrieval ---------------------------------------------------------------------------------------------------------
async def _question(call: Call) -> Question:
    body = await call.struct(Question)
    call.service.charge(call.workspace, "queries_per_s", 1)
    query = body.query.strip()
    if not query:
        raise at("/query", "invalid-value", "query cannot be empty")
    if body.mode != "bypass" and _weight(query) < _LEAST:
        raise at("/query", "invalid-value", f"the query is too short: at least {_LEAST} characters are needed")
    try:
        " ".join([query, *(body.ll_keywords or ()), *(body.hl_keywords or ())]).encode()
    except UnicodeEncodeError:
        raise at("/query", "invalid-value", "the query contains a lone surrogate: send valid Unicode") from None
    return body


def _weight(query: str) -> int:
    """Count characters; wide ones, as of Chinese, twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in query)


async def _ask(call: Call, body: Question, *, data: bool = False) -> Found:
    if body.mode == "bypass":
        return Found(mode="bypass")
    view = call.view
    return await call.ask(view.asked, lambda: _find(call, body, data))


def _find(call: Call, body: Question, data: bool) -> Found:
    view = call.view
    group, member = server(view)
    modes = member.server.modes
    mode = body.mode if body.mode in modes else "naive" if "naive" in modes else modes[0]
    top_k, chunk_top_k = body.top_k or TOP_K, body.chunk_top_k or CHUNK_TOP_K
    with_facts = mode != "naive"
    request = Retrieval(
        query=" ".join([body.query.strip(), *(body.ll_keywords or ()), *(body.hl_keywords or ())]),
        top_k=max(top_k, chunk_top_k) if with_facts else chunk_top_k,
        mode=mode,
        include=("chunks", "entities", "relations") if with_facts else ("chunks",),
        budget_tokens=body.max_total_tokens,
    )
    with view.reading([group]):
        context = retrieved(view, group, member, request)
        entities = _within(context.entities[:top_k], body.max_entity_tokens, _entity_size)
        relations = _within(context.relations[:top_k], body.max_relation_tokens, _relation_size)
        passages = context.chunks[:chunk_top_k]
        references, chunks = _cited(passages)
        shown = None
        if data:
            sources = Sources(view, group, member)
            shown = {
                "entities": [sources.entity(one) for one in entities],
                "relationships": [sources.relation(one) for one in relations],
                "chunks": chunks,
                "references": references,
            }
    return Found(
        mode=mode,
        entities=entities,
        relations=relations,
        chunks=chunks,
        references=references,
        total=(len(context.entities), len(context.relations), len(context.chunks)),
        data=shown,
        context=RetrievedContext(chunks=passages, entities=entities, relations=relations),
    )


def _cited(passages: Sequence[ScoredChunk]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Number the files, those with most chunks first; return them and the chunks."""
    paths = [file_path(one.document_id, {"metadata": one.metadata, "url": one.url}) for one in passages]
    numbers = {path: str(i) for i, (path, _) in enumerate(Counter(paths).most_common(), 1)}
    chunks = [
        {"reference_id": numbers[path], "content": one.text, "file_path": path, "chunk_id": one.chunk_id}
        for path, one in zip(paths, passages, strict=True)
    ]
    return [{"reference_id": number, "file_path": path} for path, number in numbers.items()], chunks


def _references(body: Question, found: Found) -> list[dict[str, Any]]:
    shown = [dict(one) for one in found.references]
    if body.include_chunk_content:
        for one in shown:
            one["content"] = [c["content"] for c in found.chunks if c["reference_id"] == one["reference_id"]]
    return shown


def _within(found: Iterable[T], budget_tokens: int | None, size: Callable[[T], int]) -> list[T]:
    """Take from the front what fits a budget."""
    if budget_tokens is None:
        return list(found)
    kept, left = [], budget_tokens * _CHARACTERS_PER_TOKEN
    for one in found:
        left -= size(one)
        if left < 0:
            break
        kept.append(one)
    return kept


def _entity_size(one: ScoredEntity) -> int:
    return len(one.name) + len(one.description)


def _relation_size(one: ScoredRelation) -> int:
    return len(one.source) + len(one.target) + len(one.description)


def _line(value: Mapping[str, Any]) -> bytes:
    return _encode(value) + b"\n"


_EXAMPLE = {"query": "How is the pump started?", "mode": "mix"}
_ANSWER = {
    "response": "…",
    "references": [{"reference_id": "1", "file_path": "pump.txt"}],
    "response_time": 0.006,
    "llm_generated": False,
}
ENDPOINTS = [
    endpoint("POST", "/query", query, "Answer a question", body=Question, example=_EXAMPLE, returns=_ANSWER),
    endpoint("POST", "/query/stream", stream, "Answer in lines of JSON", body=Question, example=_EXAMPLE),
    endpoint(
        "POST", "/query/data", data, "What an answer is written from", body=Question, example=_EXAMPLE,
        refuse=refused_data,
    ),
]  # fmt: skip
