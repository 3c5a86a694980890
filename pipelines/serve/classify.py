"""Classifying: labels with calibrated probabilities, by heads that learn from ``label.observed`` events.

The first live classifier that knows the head answers, or the policy named; labels that somebody pinned go before. What
is answered is logged as an exposure, one item per label, so that feedback can name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from streamfold.core.classifying import Classifier, ClassifyRequest, Corrector, Prediction, Target, WrongTarget
from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.events import Subject, check_text
from streamfold.core.events.fields import exactly_one
from streamfold.core.views import Answering, GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import READ_PARAMS, Call, Endpoint, answer
from streamfold.pipelines.serve.exposures import Exposed, new_id
from streamfold.pipelines.serve.problems import Problem, at, of_invalid
from streamfold.pipelines.serve.reading import wait_fresh

_MOST_EXPOSED = 2000
"""Labels in one exposure: an event has a bound."""
_THINGS = {"document_id": "document", "item_id": "item", "user_id": "user"}
Served = tuple[GroupView, MemberView]


class Classify(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/classify``."""

    head: str
    targets: Annotated[list[Target], msgspec.Meta(min_length=1, max_length=100)]
    user_id: str | None = None
    """For whom, where a live A/B decides who answers; else the user that all targets are, if they are one."""
    top_k: Annotated[int, msgspec.Meta(ge=1, le=50)] = 5
    explain: bool = False
    policy: str | None = None
    log_exposure: bool = True


async def classify(call: Call) -> Response:
    """Say what targets are."""
    body, view = await call.struct(Classify), call.view
    _check(body)
    user_id = body.user_id or _one_user(body.targets)
    chosen_by = None if body.policy is not None and "@" in body.policy else user_id  # who names a version gets it

    def served(among: Answering) -> tuple[list[Served], list[Served]]:
        return _classifiers(view, body.policy, among), view.servers(Corrector, None, among)

    await wait_fresh(call, view, [group for found in served(view.answering(chosen_by)) for group, _ in found])
    exposure_id = new_id()

    def work() -> dict[str, Any]:
        among = view.answering(chosen_by)
        classifiers, correctors = served(among)
        group, member = _who_knows(view, classifiers, body.head)
        with view.reading([group, *(one for one, _ in correctors)], among) as cut:
            predictions = _predicted(view, group, member, body)
            for _, corrector in correctors:
                predictions = _corrected(predictions, corrector, body)
        exposed = [
            Exposed(label=one.label, score=one.score, rank=rank)
            for prediction in predictions
            for rank, one in enumerate(prediction.labels, 1)
        ]
        logged = False
        if body.log_exposure and len(exposed) <= _MOST_EXPOSED:
            logged = call.service.exposures.log(
                view, "classify", exposed, exposure_id=exposure_id, user_id=user_id if cut.arms else body.user_id,
                policies=cut.policies, context={"head": body.head}, arms=cut.arms,
            )  # fmt: skip
        if body.log_exposure and not logged:
            cut.degraded.append("exposure-not-logged")
        shown = [_shown(one) for one in predictions]
        return {"exposure_id": exposure_id if logged else None, "predictions": shown, "version": cut.as_json()}

    return answer(await call.ask(view.asked, work))


def _check(body: Classify) -> None:
    try:
        check_text(body.head, "/head")
        if body.user_id is not None:
            check_text(body.user_id, "/user_id")
        for i, target in enumerate(body.targets):
            name = exactly_one(target, Target.__struct_fields__, f"/targets/{i}")
            if name in _THINGS:
                check_text(getattr(target, name), f"/targets/{i}/{name}")
    except InvalidEvent as error:
        raise of_invalid(error) from error


def _one_user(targets: Sequence[Target]) -> str | None:
    """The user that all targets are."""
    found = {target.user_id for target in targets}
    return found.pop() if len(found) == 1 else None


def _classifiers(view: WorkspaceView, policy: str | None, among: Answering) -> list[Served]:
    found = view.servers(Classifier, policy, among)
    if found:
        return found if policy is None else found[:1]
    if policy is not None:
        names = {member.runtime.instance.name for _, member in view.servers(Classifier)}
        raise at("/policy", "invalid-value", f"no policy '{policy[:64]}' classifies{nearest(policy[:64], names)}")
    raise Problem("not-found", "no live policy here classifies: add [policies.label_statistics] to the settings")


def _who_knows(view: WorkspaceView, served: Sequence[Served], head: str) -> Served:
    """The first one that has labels of the head; otherwise say what is missing."""
    known: dict[str, int] = {}
    for group, member in served:
        with group.lock.read():
            heads: Mapping[str, int] = member.server.heads()
        if heads.get(head):
            return group, member
        known |= {name: known.get(name, 0) + count for name, count in heads.items()}
    if head in known:
        raise Problem(
            "not-ready",
            f"head '{head[:64]}' has no labels: send label.observed events with head '{head[:64]}', a target and a "
            "label, or class.upserted events that name its classes",
        )
    raise at("/head", "not-found", f"no head '{head[:64]}'{nearest(head[:64], known)}")


def _predicted(view: WorkspaceView, group: GroupView, member: MemberView, body: Classify) -> list[Prediction]:
    if view.hides(group):
        for i, target in enumerate(body.targets):
            for name, kind in _THINGS.items():
                id_ = getattr(target, name)
                if id_ is not None and view.hidden(group, (Subject(kind, id_),)):
                    raise at(f"/targets/{i}", "invalid-value", f"{kind} '{id_[:64]}' was deleted")
    try:
        found: list[Prediction] = member.server.classify(_request(body))
    except WrongTarget as error:
        raise at(f"/targets/{error.index}", "invalid-value", str(error)) from error
    return found


def _request(body: Classify) -> ClassifyRequest:
    return ClassifyRequest(head=body.head, targets=body.targets, top_k=body.top_k, explain=body.explain)


def _corrected(said: Sequence[Prediction], corrector: MemberView, body: Classify) -> list[Prediction]:
    """Put what is known better in the place of what a head said; an explanation tells both."""
    pinned: Mapping[int, Prediction] = corrector.server.corrections(_request(body))
    found = list(said)
    for index, one in pinned.items():
        names = {label.label: label.name for label in found[index].labels}
        labels = [label._replace(name=names.get(label.label, label.name)) for label in one.labels]
        explain = one.explain
        if explain is not None:
            explain = {**explain, "head": {label.label: label.score for label in found[index].labels}}
        found[index] = replace(one, labels=labels, explain=explain)
    return found


def _shown(prediction: Prediction) -> dict[str, Any]:
    labels = [
        {"label": label, "score": score} if name is None else {"label": label, "score": score, "name": name}
        for label, score, name in prediction.labels
    ]
    return {"labels": labels, "unknown": prediction.unknown, "explain": prediction.explain}


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/classify", run=classify, tag="ask", summary="Classify targets by a head",
        params=READ_PARAMS, body=Classify, example=examples.CLASSIFY, returns=examples.CLASSIFIED,
        errors=(400, 404, 409, 415, 422, 503),
    ),
]  # fmt: skip
