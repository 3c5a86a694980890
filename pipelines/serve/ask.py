"""Questions: retrieval, answers generated from it, and what is trending."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.responses import Response, StreamingResponse

from streamfold.core.clock import US, to_rfc3339
from streamfold.core.errors import nearest
from streamfold.core.events import Subject
from streamfold.core.policy import (
    CandidateRequest,
    CandidateSource,
    ContextRetriever,
    Keywords,
    Retrieval,
    RetrievedContext,
    Retriever,
    ScoredChunk,
    ScoredEntity,
    ScoredRelation,
)
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.answers import Answers, NoAnswer, cited
from streamfold.pipelines.serve.call import READ_PARAMS, Call, Endpoint, answer, rfc3339
from streamfold.pipelines.serve.filters import Matches, compile_filter
from streamfold.pipelines.serve.helping import Help
from streamfold.pipelines.serve.problems import Problem, at, members
from streamfold.pipelines.serve.reading import enough, wait_fresh

_SOURCES = ("vector", "bm25")
_INCLUDE = ("chunks", "entities", "relations")
_CHARACTERS_PER_TOKEN = 4


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/query``."""

    query: Annotated[str, msgspec.Meta(min_length=1, max_length=32_768)]
    mode: str | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    filter: Any = None
    as_of: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    include: list[str] | None = None
    budget_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    generate: bool = False
    stream: bool = False
    user_id: str | None = None
    policy: str | None = None
    log_exposure: bool | None = None
    sources: list[str] | None = None
    """Extension: which searches of the retriever take part."""


async def query(call: Call) -> Response:
    """Find passages, and answer from them if asked to."""
    started = time.perf_counter()
    body, view = await call.struct(Query), call.view
    sources = _known(body.sources, _SOURCES, "sources")
    include = _known(body.include, _INCLUDE, "include")
    matches = None if body.filter is None else compile_filter(body.filter)
    _unserved(body, call.service.answers)
    as_of_us = _time(body.as_of, view.context.clock.now_us())
    group, member = _retriever(view, body)
    if as_of_us is not None and not isinstance(member.server, ContextRetriever):
        raise at("/as_of", "invalid-value", f"{member.runtime.instance.name} keeps no times: leave as_of out")
    wanted = _INCLUDE if body.generate else include  # an answer rests on all there is
    await wait_fresh(call, view, [group])
    waited = time.perf_counter()
    helpers = call.service.helpers
    help = Help()
    if helpers.are_configured:

        def look(keywords: Keywords | None, top_k: int) -> Sequence[ScoredChunk]:
            group, member = _retriever(view, body)
            request = _retrieval(body, member, sources, matches, ("chunks",), as_of_us, keywords)
            with view.reading([group]):
                return retrieved(view, group, member, dataclasses.replace(request, top_k=top_k)).chunks

        plain = _retrieval(body, member, sources, matches, wanted, as_of_us)
        help = await helpers.before(call.workspace, plain, lambda *asked: call.ask(view.asked, partial(look, *asked)))
        await wait_fresh(call, view, [group])  # it may have taken seconds
    helped = time.perf_counter()

    def work() -> tuple[RetrievedContext, dict[str, Any]]:
        group, member = _retriever(view, body)
        request = _retrieval(body, member, sources, matches, wanted, as_of_us, help.keywords)
        with view.reading([group]) as cut:
            retrieving = time.perf_counter()
            found = retrieved(view, group, member, request)
            if help.scores is not None:
                more = dataclasses.replace(request, top_k=help.candidates, include=("chunks",))
                found = help.ordered(found, retrieved(view, group, member, more).chunks, request.top_k)
            ended = time.perf_counter()
        found = helpers.after(call.workspace, found, help)
        if body.log_exposure:
            cut.degraded.append("exposure-not-logged")
        cut.degraded.extend(help.degraded)
        return found, {
            "exposure_id": None,
            "chunks": [_chunk(one) for one in found.chunks] if "chunks" in include else [],
            "entities": [entity(one) for one in found.entities] if "entities" in include else [],
            "relations": [relation(one) for one in found.relations] if "relations" in include else [],
            "answer": None,
            "timings_ms": {
                "wait": _ms(waited - started),
                "help": _ms(helped - waited),
                "queue": _ms(retrieving - helped),
                "retrieve": _ms(ended - retrieving),
                "total": _ms(time.perf_counter() - started),
            },
            "version": cut.as_json(),
        }

    found, response = await call.ask(view.asked, work)
    if body.stream:
        return StreamingResponse(_streamed(call, body, found, response, started), media_type="text/event-stream")
    if body.generate:
        await _answered(call, body, found, response, started)
    return answer(response)


async def _answered(call: Call, body: Query, found: RetrievedContext, response: dict[str, Any], started: float) -> None:
    """Put an answer into the response; what was found is worth sending without one."""
    asked = time.perf_counter()
    try:
        text = await call.service.answers.whole(call.workspace, body.query, found)
        response["answer"] = cited(text, found.chunks)
    except NoAnswer as error:
        call.service.log.warning("no_answer", workspace=call.workspace, error=str(error))
        response["version"]["degraded"].append("answer-not-generated")
    response["timings_ms"] |= {
        "generate": _ms(time.perf_counter() - asked),
        "total": _ms(time.perf_counter() - started),
    }


async def _streamed(
    call: Call, body: Query, found: RetrievedContext, response: dict[str, Any], started: float
) -> AsyncIterator[bytes]:
    """Yield server-sent events: ``context``, ``delta`` …, and ``done`` or ``error``."""
    yield _event("context", {name: value for name, value in response.items() if name != "answer"})
    said: list[str] = []
    if body.generate:
        try:
            async for piece in call.service.answers.pieces(call.workspace, body.query, found):
                said.append(piece)
                yield _event("delta", {"text": piece})
        except NoAnswer as error:
            call.service.log.warning("no_answer", workspace=call.workspace, error=str(error))
            problem = Problem("generator-unavailable", "the answer could not be generated, or not to its end")
            yield _event("error", members(problem, call.request.scope["streamfold.request_id"]))
            return
    timings = response["timings_ms"] | {"total": _ms(time.perf_counter() - started)}
    whole = cited("".join(said), found.chunks) if body.generate else None
    yield _event("done", {"answer": whole, "timings_ms": timings, "version": response["version"]})


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


def _known(given: list[str] | None, valid: tuple[str, ...], field: str) -> tuple[str, ...]:
    if given is None:
        return valid
    if not given:
        raise at(f"/{field}", "invalid-value", f"{field} is empty: leave it out, or name some of {', '.join(valid)}")
    for i, one in enumerate(given):
        if one not in valid:
            raise at(f"/{field}/{i}", "invalid-value", f"{field}: unknown '{one[:64]}'{nearest(one[:64], valid)}")
    return tuple(name for name in valid if name in given)


def _unserved(body: Query, answers: Answers) -> None:
    """Refuse what nothing here can answer, rather than ignore it."""
    try:
        body.query.encode()
    except UnicodeEncodeError:
        raise at("/query", "invalid-value", "query contains a lone surrogate: send valid Unicode") from None
    for field, detail in (
        ("generate", "no generator is configured: leave generate out and pass the chunks to your own model"),
        ("stream", "streams carry generated answers, and no generator is configured: leave stream out"),
    ):
        if getattr(body, field) and not answers.is_configured:
            raise at(f"/{field}", "invalid-value", detail)


def _retriever(view: WorkspaceView, body: Query) -> tuple[GroupView, MemberView]:
    """Return who answers: the policy named, or the first live one that serves the mode."""
    servers = view.servers(Retriever, body.policy)
    if not servers:
        if body.policy is None:
            raise Problem("not-found", "no live policy here answers queries")
        names = {m.runtime.instance.name for _, m in view.servers(Retriever)}
        raise at(
            "/policy",
            "invalid-value",
            f"no policy '{body.policy[:64]}' answers queries{nearest(body.policy[:64], names)}",
        )
    if body.mode is None:
        return servers[0]
    for group, member in servers:
        if body.mode in member.server.modes:
            return group, member
    modes = sorted({mode for _, member in servers for mode in member.server.modes})
    raise at("/mode", "invalid-value", f"mode '{body.mode[:64]}' is not served{nearest(body.mode[:64], modes)}")


def _time(as_of: datetime | None, now_us: int) -> int | None:
    """Return ``as_of`` in µs; what is in the future cannot be known."""
    if as_of is None:
        return None
    at_us = round(as_of.timestamp() * US)
    if at_us > now_us:
        detail = f"as_of {to_rfc3339(at_us)} is in the future: leave it out to ask about now"
        raise at("/as_of", "invalid-value", detail)
    return at_us


def _retrieval(
    body: Query,
    member: MemberView,
    sources: tuple[str, ...],
    matches: Matches | None,
    include: tuple[str, ...],
    as_of_us: int | None,
    keywords: Keywords | None = None,
) -> Retrieval:
    modes = member.server.modes
    default = "mix" if "mix" in modes else "naive" if "naive" in modes else modes[0]
    return Retrieval(
        query=body.query,
        top_k=body.top_k,
        mode=body.mode or default,
        sources=sources,
        matches=matches,
        include=include,
        as_of_us=as_of_us,
        budget_tokens=body.budget_tokens,
        keywords=keywords,
    )


def retrieved(view: WorkspaceView, group: GroupView, member: MemberView, request: Retrieval) -> RetrievedContext:
    """Retrieve, leaving out what was deleted past the group's watermark."""
    if isinstance(member.server, ContextRetriever):
        served = unhidden(view, group, request.matches)
        return member.server.context(dataclasses.replace(request, matches=served))
    if "chunks" not in request.include:
        return RetrievedContext()
    return RetrievedContext(chunks=_within(_unhidden(view, group, member, request), request.budget_tokens))


def unhidden(view: WorkspaceView, group: GroupView, matches: Matches | None) -> Matches | None:
    """Narrow a filter to documents that were not deleted past the group's watermark; None: there is nothing to hide."""
    if not view.hides(group):
        return matches

    def served(fields: Mapping[str, Any]) -> bool:
        hidden = view.hidden(group, (Subject("document", fields["document_id"]),))
        return not hidden and (matches is None or matches(fields))

    return served


def _unhidden(view: WorkspaceView, group: GroupView, member: MemberView, request: Retrieval) -> list[ScoredChunk]:
    """Retrieve passages; more is fetched when too few are left."""

    def look(fetch: int) -> tuple[list[ScoredChunk], bool]:
        found = member.server.retrieve(dataclasses.replace(request, top_k=fetch))
        kept = [one for one in found if not view.hidden(group, (Subject("document", one.document_id),))]
        return kept, len(found) >= fetch

    return enough(request.top_k, request.top_k, look)[: request.top_k]


def _within(chunks: Sequence[ScoredChunk], budget_tokens: int | None) -> list[ScoredChunk]:
    """Return the best chunks whose texts fit a budget, counted at four characters a token."""
    if budget_tokens is None:
        return list(chunks)
    kept, left = [], budget_tokens * _CHARACTERS_PER_TOKEN
    for one in chunks:
        left -= len(one.text)
        if left < 0:
            break
        kept.append(one)
    return kept


def _chunk(one: ScoredChunk) -> dict[str, Any]:
    return {
        "chunk_id": one.chunk_id,
        "document_id": one.document_id,
        "title": one.title,
        "text": one.text,
        "start": one.start,
        "end": one.end,
        "score": float(one.score),
        "sources": list(one.sources),
        "path": [dict(step) for step in one.path],
        "url": one.url,
        "metadata": dict(one.metadata),
    }


def entity(one: ScoredEntity) -> dict[str, Any]:
    """An entity as JSON."""
    return {
        "entity_id": one.entity_id,
        "name": one.name,
        "type": one.type,
        "description": one.description,
        "score": float(one.score),
        "chunk_ids": list(one.chunk_ids),
    }


def relation(one: ScoredRelation) -> dict[str, Any]:
    """A relation as JSON."""
    return {
        "relation_id": one.relation_id,
        "source": one.source,
        "target": one.target,
        "keywords": list(one.keywords),
        "description": one.description,
        "weight": one.weight,
        "valid_from": rfc3339(one.valid_from_us),
        "valid_to": rfc3339(one.valid_to_us),
        "score": float(one.score),
        "chunk_ids": list(one.chunk_ids),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


async def trending(call: Call) -> Response:
    """The items with the most attention lately."""
    view = call.view
    n = call.integer("n", 10, least=1, most=1000)
    half_life_s, category = call.real("half_life_s"), call.query.get("category")
    group, _ = _source(call, view)
    await wait_fresh(call, view, [group])

    def work() -> dict[str, Any]:
        group, member = _source(call, view)
        with view.reading([group]) as cut:

            def look(fetch: int) -> tuple[list[tuple[str, float]], bool]:
                request = CandidateRequest(
                    n=fetch, category=category, half_life_s=half_life_s, at_us=view.context.clock.now_us()
                )
                try:
                    found = member.server.candidates(request)
                except ValueError as error:  # the policy's word for a half-life that is not configured
                    raise at("/half_life_s", "invalid-value", str(error)) from error
                kept = [one for one in found if not view.hidden(group, (Subject("item", one[0]),))]
                return kept, len(found) >= fetch

            items = [
                {"item_id": item_id, "rank": rank, "score": float(score)}
                for rank, (item_id, score) in enumerate(enough(n, n, look)[:n], start=1)
            ]
            return {"items": items, "version": cut.as_json()}

    return answer(await call.ask(view.asked, work))


def _source(call: Call, view: WorkspaceView) -> tuple[GroupView, MemberView]:
    named = call.query.get("policy")
    servers = view.servers(CandidateSource, named)
    servers.sort(key=lambda pair: pair[1].runtime.instance.use != "trending")
    if servers:
        return servers[0]
    if named:
        raise at("/policy", "invalid-value", f"no policy '{named[:64]}' lists candidates")
    raise Problem("not-found", "no live policy here lists candidates: add [policies.trending] to the settings")


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/query", run=query, tag="ask", summary="Find the passages that answer a question",
        params=READ_PARAMS, body=Query, example=examples.QUERY, returns=examples.ANSWER, stream=examples.STREAM,
        errors=(400, 415, 422, 503),
    ),
    Endpoint(
        method="GET", path="/v1/trending", run=trending, tag="ask", summary="Items with the most attention lately",
        params=("n", "category", "half_life_s", "policy", *READ_PARAMS), returns=examples.TRENDING, errors=(422, 503),
    ),
]  # fmt: skip
