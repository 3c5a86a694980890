"""Recommending: candidates of all sources, scored by one ranker, made into a list, logged as an exposure.

``/v1/recommend`` gathers what the candidate sources propose for the user's history (or for the items given), leaves out
what may not be shown, has the ranker score the rest and makes a list of it (see ``blend.py``). ``/v1/rank`` scores the
items given. Without a ranker, sources vote by reciprocal rank (Cormack et al. 2009, doi:10.1145/1571941.1572114);
without a catalogue every item may be shown. Whoever is not known gets what fits the items given, or what is popular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.events import Subject, check_text
from streamfold.core.events.fields import Flat
from streamfold.core.events.types import ACTIONS
from streamfold.core.policy import CandidateRequest, CandidateSource
from streamfold.core.recommending import Catalogue, Feature, Ranker, Ranking, RankRequest, SimilarItems, user_key
from streamfold.core.views import Answering, Cut, GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.blend import choose, generator_of
from streamfold.pipelines.serve.call import READ_PARAMS, Call, Endpoint, answer
from streamfold.pipelines.serve.exposures import Exposed, new_id
from streamfold.pipelines.serve.filters import Matches, compile_filter
from streamfold.pipelines.serve.problems import Problem, at, of_invalid
from streamfold.pipelines.serve.reading import enough, wait_fresh

_FETCH = 100
"""Candidates asked of each source at first."""
_RRF_K = 60.0
_SEEDS = 20
_DISLIKED, _MET = -0.5, 0.3
"""What an item of a user's history counts for as a seed that was disliked, or only met; liked ones count 1."""
_SHOWN_FEATURES = 20
Served = tuple[GroupView, MemberView]


class Recommend(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/recommend``."""

    user_id: str | None = None
    session_id: str | None = None
    item_ids: Annotated[list[str], msgspec.Meta(max_length=1000)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    filter: Any = None
    exclude_seen: list[str] | None = None
    exclude_item_ids: Annotated[list[str], msgspec.Meta(max_length=10_000)] | None = None
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    explore: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    explain: bool = False
    context: Flat | None = None
    policy: str | None = None
    log_exposure: bool = True


class Rank(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/rank``."""

    item_ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)]
    user_id: str | None = None
    session_id: str | None = None
    explain: bool = False
    context: Flat | None = None
    policy: str | None = None
    log_exposure: bool = True


# -- who answers -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Who answers a request: the catalogue, a ranker, the sources; what is not there is None or empty."""

    catalogue: Served | None
    ranker: Served | None
    sources: Sequence[Served] = ()
    among: Answering | None = None

    @property
    def groups(self) -> list[GroupView]:
        found = [one[0] for one in (self.catalogue, self.ranker, *self.sources) if one is not None]
        return list({group.group.name: group for group in found}.values())


def stack_of(view: WorkspaceView, policy: str | None, user_id: str | None = None) -> Stack:
    """Choose who answers the user: what is live, or a candidate in its place, or the policy named as ranker, or else as
    the one source. Who names a version is in no experiment."""
    among = view.answering(None if policy is not None and "@" in policy else user_id)
    sources = view.servers(CandidateSource, None, among)
    ranker: Served | None = None
    if policy is None:
        ranker = next(iter(rankers(view, among)), None)
    elif named := view.servers(Ranker, policy, among):
        ranker = named[0]
    elif named := view.servers(CandidateSource, policy, among):
        sources = named[:1]
    else:
        kinds = (*view.servers(Ranker, None, among), *sources)
        names = {member.runtime.instance.name for _, member in kinds}
        detail = f"no policy '{policy[:64]}' recommends{nearest(policy[:64], names)}"
        raise at("/policy", "invalid-value", detail)
    catalogues = view.servers(Catalogue, None, among)
    if ranker is not None:  # a shadow ranks by the catalogue of its own group
        own = [(ranker[0], m) for m in ranker[0].members.values() if isinstance(m.server, Catalogue)]
        catalogues = [*own, *catalogues]
    return Stack(catalogue=next(iter(catalogues), None), ranker=ranker, sources=sources, among=among)


def catalogue_of(view: WorkspaceView) -> Served | None:
    """Who knows the items, if anybody live does."""
    return next(iter(view.servers(Catalogue)), None)


def rankers(view: WorkspaceView, among: Answering | None = None) -> list[Served]:
    """Live rankers that no other ranker reads, those that build on most others first."""
    found = []
    for group, member in view.servers(Ranker, None, among):
        ranking = [m.runtime for m in group.members.values() if isinstance(m.server, Ranker)]
        reads = {runtime.instance.name: runtime.policy.reads for runtime in ranking}
        name = member.runtime.instance.name
        if not any(name in read for read in reads.values()):
            found.append((-_depth(name, reads), name, (group, member)))
    return [served for _, _, served in sorted(found, key=lambda one: one[:2])]


def _depth(name: str, reads: Mapping[str, Sequence[str]]) -> int:
    return 1 + max((_depth(one, reads) for one in reads.get(name, ())), default=0)


# -- recommend ---------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Pool:
    """Candidates that may be shown, in order of preference, and who proposed them."""

    item_ids: list[str] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    sources: list[list[str]] = field(default_factory=list)
    tokens: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.item_ids)


async def recommend(call: Call) -> Response:
    """Recommend items to a user, a session, or to go with items."""
    body = await call.struct(Recommend)
    if body.user_id is None and body.session_id is None and not body.item_ids:
        raise at("/user_id", "invalid-value", "say for whom, or what for: give user_id, session_id or item_ids")
    return answer(await recommended(call, body))


def _check_actions(actions: Sequence[str], known: Set[str]) -> None:
    """Refuse what no interaction can say: that would leave nothing out."""
    for number, one in enumerate(actions):
        if one not in known:
            detail = f"/exclude_seen/{number} '{one[:64]}' is not a known action{nearest(one[:64], known)}"
            raise at(f"/exclude_seen/{number}", "invalid-value", detail)


async def recommended(call: Call, body: Recommend, *, offset: int = 0) -> dict[str, Any]:
    """Recommend as a body says; the first ``offset`` items are left out of the answer and of its exposure."""
    view = call.view
    _check_ids(body.user_id, body.session_id, body.item_ids)
    _check_actions(body.exclude_seen or (), {*ACTIONS, *call.service.settings.limits.actions})
    matches = None if body.filter is None else compile_filter(body.filter)
    stack = stack_of(view, body.policy, body.user_id)
    if not stack.sources:
        raise Problem("not-found", "no live policy here lists candidates: add [policies.trending] to the settings")
    await wait_fresh(call, view, stack.groups)
    exposure_id = new_id()

    def work() -> dict[str, Any]:
        stack = stack_of(view, body.policy, body.user_id)
        with view.reading(stack.groups, stack.among) as cut:
            items, fallback, exposed = _Recommending(view, stack, body, matches).answer(exposure_id)
        _tell_arms(items, cut)
        logged = _logged(call, "recommend", exposed[offset:], exposure_id, body, cut)
        return {"exposure_id": logged, "items": items[offset:], "fallback": fallback, "version": cut.as_json()}

    return await call.ask(view.asked, work)


class _Recommending:
    """One request, at one cut."""

    def __init__(self, view: WorkspaceView, stack: Stack, body: Recommend, matches: Matches | None) -> None:
        self._view, self._stack, self._body, self._matches = view, stack, body, matches
        self._user = user_key(body.user_id, body.session_id)
        self._now_us = view.context.clock.now_us()
        self._catalogue: Catalogue | None = None if stack.catalogue is None else stack.catalogue[1].server
        history = [] if self._catalogue is None or not self._user else self._catalogue.history(self._user)
        self._seeds = _seeds(body.item_ids or (), history)
        self._excluded = {*(body.exclude_item_ids or ()), *(body.item_ids or ())}

    def answer(self, exposure_id: str) -> tuple[list[dict[str, Any]], str | None, list[Exposed]]:
        body = self._body
        pool = self._pool()
        ranking = self._ranked(pool)
        scores = np.array(pool.votes) if ranking is None else ranking.scores
        chosen = choose(
            scores, body.n, tokens=pool.tokens, diversity=body.diversity, explore=body.explore,
            rng=generator_of(exposure_id),
        )  # fmt: skip
        items, exposed = [], []
        for rank, index in enumerate(chosen.order, 1):
            propensity = None if chosen.propensities is None else chosen.propensities[rank - 1]
            one: dict[str, Any] = {
                "item_id": pool.item_ids[index],
                "rank": rank,
                "score": float(scores[index]),
                "propensity": propensity,
                "sources": pool.sources[index],
            }
            if body.explain:
                one["explain"] = _explained(ranking, index, pool.votes[index])
            items.append(one)
            exposed.append(Exposed(item_id=one["item_id"], score=one["score"], propensity=propensity))
        return items, self._fallback(pool, chosen.order), exposed

    def _pool(self) -> Pool:
        """Ask the sources, for more while too few may be shown."""

        def look(fetch: int) -> tuple[Pool, bool]:
            found, full = self._candidates(fetch)
            return self._shown(found), full

        return enough(self._body.n, max(_FETCH, 4 * self._body.n), look)

    def _candidates(self, fetch: int) -> tuple[dict[str, tuple[float, list[str]]], bool]:
        """Every proposed item with its votes and sources; whether any source may know more."""
        found: dict[str, tuple[float, list[str]]] = {}
        full = False
        request = CandidateRequest(n=fetch, user=self._user, seeds=self._seeds, at_us=self._now_us)
        alone = len(self._stack.sources) == 1  # its own scores say more than ranks
        for group, member in self._stack.sources:
            name = member.runtime.instance.name
            rows = member.server.candidates(request)
            full |= len(rows) >= fetch
            hides = self._view.hides(group)
            for rank, (item_id, score) in enumerate(rows):
                if hides and self._view.hidden(group, (Subject("item", item_id),)):
                    continue
                vote, sources = found.get(item_id, (0.0, []))
                found[item_id] = vote + (float(score) if alone else 1.0 / (_RRF_K + rank)), [*sources, name]
        return found, full

    def _shown(self, found: Mapping[str, tuple[float, list[str]]]) -> Pool:
        """Leave out what may not be shown."""
        item_ids = [one for one in sorted(found, key=lambda one: (-found[one][0], one)) if one not in self._excluded]
        tokens: list[tuple[str, ...]] = [()] * len(item_ids)
        if self._catalogue is not None and item_ids:
            keep = self._catalogue.listed(item_ids, self._now_us) & ~hidden_items(self._view, self._stack, item_ids)
            if self._body.exclude_seen and self._user:
                keep &= ~self._catalogue.seen(self._user, item_ids, self._body.exclude_seen)
            if self._matches is not None:
                keep &= self._matching(item_ids)
            item_ids = [item_ids[i] for i in np.flatnonzero(keep)]
            tokens = self._catalogue.tokens(self._user, item_ids)[1]
        elif self._matches is not None:
            item_ids = [one for one in item_ids if self._matches({"item_id": one})]
        return Pool(item_ids, [found[one][0] for one in item_ids], [found[one][1] for one in item_ids], tokens)

    def _matching(self, item_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        assert self._catalogue is not None
        assert self._matches is not None
        rows = self._catalogue.items(item_ids)
        told = [{} if row is None else row.fields for row in rows]
        return np.array([self._matches({"item_id": id_, **fields}) for id_, fields in zip(item_ids, told, strict=True)])

    def _ranked(self, pool: Pool) -> Ranking | None:
        if self._stack.ranker is None or not pool.item_ids:
            return None
        return _rank(self._stack.ranker, self._user, pool.item_ids, self._now_us, self._body)

    def _fallback(self, pool: Pool, order: Sequence[int]) -> str | None:
        """What stood in for a history: content, where items were given, or what is popular."""
        if self._body.policy is not None and self._stack.ranker is None:
            return None  # the one source that was asked for has answered
        if self._user and self._seeds and not self._body.item_ids:
            return None
        if not self._seeds:
            return "popular"
        popular = {name for _, member in self._stack.sources if (name := member.runtime.instance.name) == "trending"}
        return "content" if any(set(pool.sources[i]) - popular for i in order) else "popular"


def _seeds(item_ids: Sequence[str], history: Sequence[Any]) -> tuple[tuple[str, float], ...]:
    """Items to go by, newest first: those given, else those of the history, each once."""
    if item_ids:
        return tuple((one, 1.0) for one in dict.fromkeys(item_ids))
    seeds: dict[str, float] = {}
    for one in history:
        seeds.setdefault(one.item_id, _MET if one.label is None else 1.0 if one.label > 0 else _DISLIKED)
    return tuple(seeds.items())[:_SEEDS]


# -- rank --------------------------------------------------------------------------------------------------------------
async def rank(call: Call) -> Response:
    """Put items in order for a user."""
    return answer(await ranked(call, await call.struct(Rank)))


async def ranked(call: Call, body: Rank) -> dict[str, Any]:
    """Put items in order as a body says."""
    view = call.view
    _check_ids(body.user_id, body.session_id, body.item_ids)
    if len(set(body.item_ids)) < len(body.item_ids):
        twice = next(one for i, one in enumerate(body.item_ids) if one in body.item_ids[:i])
        raise at("/item_ids", "invalid-value", f"item_ids names '{twice[:64]}' twice: each may come once")
    await wait_fresh(call, view, _ranking_stack(view, body).groups)
    exposure_id = new_id()

    def work() -> dict[str, Any]:
        stack = _ranking_stack(view, body)
        assert stack.ranker is not None
        user, now_us = user_key(body.user_id, body.session_id), view.context.clock.now_us()
        with view.reading(stack.groups, stack.among) as cut:
            ranking = _rank(stack.ranker, user, body.item_ids, now_us, body)
            gone = hidden_items(view, stack, body.item_ids)
            if stack.catalogue is not None:
                gone |= ~stack.catalogue[1].server.listed(body.item_ids, now_us)
        items = []
        for rank, index in enumerate(np.lexsort((np.arange(len(gone)), -ranking.scores, gone)).tolist(), 1):
            known = bool(ranking.known[index]) and not gone[index]
            one = {"item_id": body.item_ids[index], "rank": rank, "score": float(ranking.scores[index]), "known": known}
            one |= {"propensity": None, "sources": []}
            if body.explain:
                one["explain"] = _explained(ranking, index, None)
            items.append(one)
        exposed = [Exposed(item_id=one["item_id"], score=one["score"]) for one in items]
        _tell_arms(items, cut)
        logged = _logged(call, "rank", exposed, exposure_id, body, cut)
        return {"exposure_id": logged, "items": items, "fallback": None, "version": cut.as_json()}

    return await call.ask(view.asked, work)


def _ranking_stack(view: WorkspaceView, body: Rank) -> Stack:
    stack = stack_of(view, body.policy, body.user_id)
    if stack.ranker is None:
        if body.policy is not None:
            raise at("/policy", "invalid-value", f"'{body.policy[:64]}' lists candidates and ranks none")
        raise Problem("not-found", "no live policy here ranks: add [policies.activity] and a ranker to the settings")
    return Stack(catalogue=stack.catalogue, ranker=stack.ranker, among=stack.among)


def _rank(ranker: Served, user: str, item_ids: Sequence[str], now_us: int, body: Recommend | Rank) -> Ranking:
    request = RankRequest(user=user, item_ids=item_ids, at_us=now_us, context=body.context or {}, explain=body.explain)
    ranking: Ranking = ranker[1].server.rank(request)
    return ranking


def hidden_items(view: WorkspaceView, stack: Stack, item_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which items were deleted past the watermark of a group that answers; ``(n,) bool``."""
    hiding = [group for group in stack.groups if view.hides(group)]
    return np.array([any(view.hidden(group, (Subject("item", one),)) for group in hiding) for one in item_ids], bool)


def _explained(ranking: Ranking | None, index: int, vote: float | None) -> dict[str, Any]:
    """Why an item has its score; without a ranker the sources' vote is all there is to say."""
    if ranking is None:
        return {"base_score": vote, "correction": 0.0, "features": []}
    score = float(ranking.scores[index])
    base = score if ranking.base is None else float(ranking.base[index])
    features: Sequence[Feature] = ranking.features[index] if ranking.features else ()
    shown = [
        {"name": one.name, "value": float(one.value), "contribution": float(one.contribution)}
        for n, one in enumerate(features)
        if n < _SHOWN_FEATURES or not one.contribution  # what adds nothing is there to tell something: a memory's λ
    ]
    return {"base_score": base, "correction": score - base, "features": shown}


def _tell_arms(items: Sequence[dict[str, Any]], cut: Cut) -> None:
    """Have explanations say in which arms of live A/Bs the answer is."""
    if cut.arms:
        for one in items:
            if "explain" in one:
                one["explain"]["arms"] = cut.as_json()["arms"]


def _logged(
    call: Call, kind: Literal["recommend", "rank"], items: Sequence[Exposed], exposure_id: str,
    body: Recommend | Rank, cut: Cut,
) -> str | None:  # fmt: skip
    """Have the response logged; None: it was not wanted, or cannot be."""
    if not body.log_exposure or not items:
        return None
    done = call.service.exposures.log(
        call.view, kind, items, exposure_id=exposure_id, user_id=body.user_id, session_id=body.session_id,
        policies=cut.policies, context=body.context, arms=cut.arms,
    )  # fmt: skip
    if not done:
        cut.degraded.append("exposure-not-logged")
    return exposure_id if done else None


def _check_ids(user_id: str | None, session_id: str | None, item_ids: Sequence[str] | None) -> None:
    named = [("user_id", user_id), ("session_id", session_id)]
    named += [(f"item_ids/{i}", one) for i, one in enumerate(item_ids or ())]
    for pointer, one in named:
        if one is not None:
            try:
                check_text(one, f"/{pointer}")
            except InvalidEvent as error:
                raise of_invalid(error) from error


# -- similar -----------------------------------------------------------------------------------------------------------
async def similar(call: Call) -> Response:
    """Items like an item: all sources' votes by reciprocal rank."""
    n = call.integer("n", 10, least=1, most=1000)
    return answer(await similar_items(call, call.id(), n, call.query.get("policy")))


async def similar_items(call: Call, item_id: str, n: int, policy: str | None) -> dict[str, Any]:
    """List items like an item, by all policies that do or by the one named."""
    view = call.view
    await wait_fresh(call, view, _similar_stack(view, policy).groups)

    def work() -> dict[str, Any]:
        stack = _similar_stack(view, policy)
        now_us = view.context.clock.now_us()
        with view.reading(stack.groups) as cut:
            votes: dict[str, tuple[float, list[str]]] = {}
            for _, member in stack.sources:
                for rank, (one, _) in enumerate(member.server.similar(item_id, 4 * n)):
                    vote, sources = votes.get(one, (0.0, []))
                    votes[one] = vote + 1.0 / (_RRF_K + rank), [*sources, member.runtime.instance.name]
            found = sorted((one for one in votes if one != item_id), key=lambda one: (-votes[one][0], one))
            keep = ~hidden_items(view, stack, found)
            if stack.catalogue is not None:
                catalogue: Catalogue = stack.catalogue[1].server
                keep &= catalogue.listed(found, now_us)
                if not found and catalogue.items([item_id]) == [None]:
                    extra = {"version": cut.as_json()}
                    raise Problem("not-found", f"nothing is known of item '{item_id[:100]}'", extra=extra)
            items = [
                {"item_id": found[i], "rank": rank, "score": votes[found[i]][0], "sources": votes[found[i]][1]}
                for rank, i in enumerate(np.flatnonzero(keep)[:n].tolist(), 1)
            ]
            return {"items": items, "version": cut.as_json()}

    return await call.ask(view.asked, work)


def _similar_stack(view: WorkspaceView, named: str | None) -> Stack:
    sources = view.servers(SimilarItems, named)
    if not sources:
        if named:
            raise at("/policy", "invalid-value", f"no policy '{named[:64]}' lists similar items")
        raise Problem("not-found", "no live policy here lists similar items: add [policies.cooccurrence]")
    return Stack(catalogue=catalogue_of(view), ranker=None, sources=sources)


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/recommend", run=recommend, tag="ask", summary="Recommend items",
        params=READ_PARAMS, body=Recommend, example=examples.RECOMMEND, returns=examples.RECOMMENDED,
        errors=(400, 404, 415, 422, 503),
    ),
    Endpoint(
        method="POST", path="/v1/rank", run=rank, tag="ask", summary="Put items in order for a user",
        params=READ_PARAMS, body=Rank, example=examples.RANK, returns=examples.RANKED,
        errors=(400, 404, 415, 422, 503),
    ),
    Endpoint(
        method="GET", path="/v1/similar/{id:path}", run=similar, tag="ask", summary="Items like an item",
        params=("n", "policy", *READ_PARAMS), returns=examples.SIMILAR, errors=(404, 422, 503),
    ),
]  # fmt: skip
