"""The built-in event types: one msgspec Struct per kind of data, and a table of ``EventType`` s.

Structs refuse unknown fields. ``omit_defaults`` keeps the canonical form, and so the digest by which a redelivery is
known, the same when a later version adds an optional field. In ``*.patched`` types a missing field is
``msgspec.UNSET`` (unchanged) and ``None`` deletes it (RFC 7396); ``patch.patched`` applies one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.events.fields import (
    MAX_ID_BYTES,
    Flat,
    Id,
    Integer,
    Rank,
    Time,
    Unit,
    check_text,
    exactly_one,
    id_check,
    utc_times,
)
from streamfold.core.events.model import EventType, Subject

ACTIONS = ("view", "click", "like", "dislike", "skip", "cart", "purchase", "rating")
"""Actions that need no configuration."""
NO_NEGATIVE = (
    "it must not be negative: shift a rating scale that goes below 0 before it is sent or in the mapping (add = 5), "
    "and send what is disliked as the action 'dislike'"
)
"""What to do instead of sending a negative value of an interaction."""


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the built-in data structs."""


class DocumentUpserted(Data, frozen=True, kw_only=True):
    document_id: Id
    text: str
    title: str | None = None
    url: str | None = None
    media_type: Literal["text/plain", "text/markdown"] | None = None
    language: str | None = None
    metadata: Flat | None = None
    valid_from: Time | None = None
    valid_to: Time | None = None

    def __post_init__(self) -> None:
        utc_times(self, "valid_from", "valid_to")


class DocumentPatched(Data, frozen=True, kw_only=True):
    document_id: Id
    title: str | UnsetType | None = UNSET
    url: str | UnsetType | None = UNSET
    metadata: Flat | UnsetType | None = UNSET


class DocumentRef(Data, frozen=True, kw_only=True):
    document_id: Id


class ItemUpserted(Data, frozen=True, kw_only=True):
    item_id: Id
    title: str | None = None
    text: str | None = None
    url: str | None = None
    categories: list[str] | None = None
    properties: Flat | None = None
    available: bool = True
    published_at: Time | None = None
    expires_at: Time | None = None

    def __post_init__(self) -> None:
        utc_times(self, "published_at", "expires_at")


class ItemPatched(Data, frozen=True, kw_only=True):
    item_id: Id
    title: str | UnsetType | None = UNSET
    text: str | UnsetType | None = UNSET
    url: str | UnsetType | None = UNSET
    categories: list[str] | UnsetType | None = UNSET
    properties: Flat | UnsetType | None = UNSET
    available: bool | UnsetType | None = UNSET
    published_at: Time | UnsetType | None = UNSET
    expires_at: Time | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        utc_times(self, "published_at", "expires_at")


class ItemRef(Data, frozen=True, kw_only=True):
    item_id: Id


class UserUpserted(Data, frozen=True, kw_only=True):
    user_id: Id
    properties: Flat | None = None


class UserPatched(Data, frozen=True, kw_only=True):
    user_id: Id
    properties: Flat | UnsetType | None = UNSET


class UserRef(Data, frozen=True, kw_only=True):
    user_id: Id


class InteractionObserved(Data, frozen=True, kw_only=True):
    """Behaviour of a user or a session towards an item."""

    item_id: Id
    action: str
    user_id: Id | None = None
    session_id: Id | None = None
    value: float | None = None
    exposure_id: Id | None = None
    rank: Rank | None = None
    context: Flat | None = None


class ExposedItem(Data, frozen=True, kw_only=True):
    rank: Rank
    item_id: Id | None = None
    document_id: Id | None = None
    chunk_id: Id | None = None
    label: str | None = None
    score: float | None = None
    propensity: Unit | None = None


class ExposureArm(Data, frozen=True, kw_only=True):
    """The arm of a live A/B that a response comes from: ``share`` of the users get the stack ``candidate``, the others
    those of ``live``. ``weighted``: what is learned from it counts for an arm as far as that arm shows such things."""

    experiment: Id
    arm: Literal["live", "candidate"]
    share: Unit
    candidate: str
    live: list[str]
    weighted: bool = True


class ExposureRecorded(Data, frozen=True, kw_only=True):
    """One served response: what was shown, by which versions, in which arms of live A/Bs."""

    exposure_id: Id
    kind: Literal["recommend", "rank", "query", "classify"]
    items: list[ExposedItem]
    user_id: Id | None = None
    session_id: Id | None = None
    policies: dict[str, str] | None = None
    context: Flat | None = None
    arms: list[ExposureArm] | None = None


class LabelTarget(Data, frozen=True, kw_only=True):
    document_id: Id | None = None
    item_id: Id | None = None
    user_id: Id | None = None
    text: str | None = None
    features: Flat | None = None


class LabelObserved(Data, frozen=True, kw_only=True):
    """Ground truth for a head; ``label=None`` retracts."""

    head: Id
    target: LabelTarget
    label: str | float | None
    weight: float | None = None
    exposure_id: Id | None = None


class FeedbackGiven(Data, frozen=True, kw_only=True):
    """A judgement of one response.

    With ``head`` and ``target`` of a classification ``correction`` is the right label, or ``None``: there is none to
    be held to any more.
    """

    exposure_id: Id
    value: float
    item_id: Id | None = None
    chunk_id: Id | None = None
    user_id: Id | None = None
    comment: str | None = None
    correction: str | None = None
    head: Id | None = None
    target: LabelTarget | None = None


class ClassChanged(Data, frozen=True, kw_only=True, rename={"class_": "class"}):
    """Data of ``class.upserted``, ``class.merged`` (``into`` required) and ``class.retired``."""

    head: Id
    class_: Id
    name: str | None = None
    into: Id | None = None


class EntityChanged(Data, frozen=True, kw_only=True):
    """Data of the ``entity.*`` types; which field is required depends on the type."""

    entity_id: Id
    into: Id | list[Id] | None = None
    name: str | None = None
    aliases: list[str] | None = None
    undo: bool = False


class ExtractedEntity(Data, frozen=True, kw_only=True):
    name: str
    type: str | None = None
    description: str | None = None


class ExtractedRelation(Data, frozen=True, kw_only=True):
    source: str
    target: str
    keywords: list[str] | None = None
    description: str | None = None
    weight: float | None = None
    valid_from: Time | None = None
    valid_to: Time | None = None

    def __post_init__(self) -> None:
        utc_times(self, "valid_from", "valid_to")


class DocumentExtracted(Data, frozen=True, kw_only=True):
    """What a language model found in one chunk; folded only while ``input_position`` is the document's newest."""

    document_id: Id
    input_position: Integer
    chunk_hash: str
    extractor: str
    entities: list[ExtractedEntity] = []
    relations: list[ExtractedRelation] = []


class DriftDetected(Data, frozen=True, kw_only=True):
    policy: Id
    detector: str
    statistic: float | None = None
    threshold: float | None = None
    at_position: Integer | None = None


class RuleApplied(Data, frozen=True, kw_only=True):
    """What a rule of the settings did about an alarm, the event at ``alarm_position``."""

    rule: Id
    do: Id
    policy: Id
    outcome: str
    detail: str | None = None
    alarm_position: Integer | None = None


class GateJudged(Data, frozen=True, kw_only=True):
    """What the gate says of a changed declaration that is to take over by itself; said when the verdict changes.

    ``policy``: what changed, as ``name@version``; ``verdict``: ``pass``, ``undecided`` or ``fail``; ``failed``: the
    rules that stand in its way.
    """

    policy: Id
    group: Id
    live: str
    verdict: str
    failed: list[str] = []
    detail: str | None = None
    at_position: Integer | None = None


def _subjects(**kinds: str) -> Callable[[Any], tuple[Subject, ...]]:
    """Make a ``subjects`` function: kind = name of the field that holds its id; the first one set is the main one."""
    pairs = tuple(kinds.items())

    def subjects(data: Any) -> tuple[Subject, ...]:
        return tuple([Subject(kind, id_) for kind, name in pairs if (id_ := getattr(data, name)) is not None])

    return subjects


def _interaction_check(extra: Iterable[str]) -> Callable[[InteractionObserved], None]:
    actions = frozenset((*ACTIONS, *extra))

    def check(data: InteractionObserved) -> None:
        if data.action not in actions:
            detail = f"/data/action '{data.action[:64]}' is not a known action{nearest(data.action[:64], actions)}"
            raise InvalidEvent("invalid-value", detail, "/data/action")
        if data.user_id is None and data.session_id is None:
            raise InvalidEvent("invalid-event", "/data needs user_id or session_id (or both)", "/data/user_id")
        if data.action == "rating" and data.value is None:
            raise InvalidEvent("invalid-event", "action 'rating' needs a value", "/data/value")
        if data.value is not None and data.value < 0:
            raise InvalidEvent("invalid-value", f"/data/value is {data.value:g}: {NO_NEGATIVE}", "/data/value")

    return id_check("item_id", "user_id", "session_id", "exposure_id", rest=check)


def _exposure_subjects(data: ExposureRecorded) -> tuple[Subject, ...]:
    found = {Subject("exposure", data.exposure_id): None}
    for kind in ("user", "session"):
        if (id_ := getattr(data, f"{kind}_id")) is not None:
            found[Subject(kind, id_)] = None
    for shown in data.items:
        for kind in ("item", "document", "chunk"):
            if (id_ := getattr(shown, f"{kind}_id")) is not None:
                found[Subject(kind, id_)] = None
    return tuple(found)


def _exposure_check(data: ExposureRecorded) -> None:
    for i, shown in enumerate(data.items):
        name = exactly_one(shown, ("item_id", "document_id", "chunk_id", "label"), f"/data/items/{i}")
        check_text(getattr(shown, name), f"/data/items/{i}/{name}")


def target_subject(target: LabelTarget) -> Subject:
    """Return what a target is: a thing, or a text or features, named by their content."""
    for kind in ("document", "item", "user"):
        if (id_ := getattr(target, f"{kind}_id")) is not None:
            return Subject(kind, id_)
    kind, content = ("text", target.text) if target.text is not None else ("features", target.features)
    return Subject(kind, blake2b(msgspec.json.encode(content, order="deterministic"), digest_size=16).hexdigest())


def _target_check(target: LabelTarget) -> None:
    name = exactly_one(target, LabelTarget.__struct_fields__, "/data/target")
    if name.endswith("_id"):
        check_text(getattr(target, name), f"/data/target/{name}")


def _label_subjects(data: LabelObserved) -> tuple[Subject, ...]:
    main = target_subject(data.target)
    return (main,) if data.exposure_id is None else (main, Subject("exposure", data.exposure_id))


def _label_check(data: LabelObserved) -> None:
    _target_check(data.target)
    if data.weight is not None and data.weight < 0:
        raise InvalidEvent("invalid-value", "/data/weight is negative", "/data/weight")


def _feedback_subjects(data: FeedbackGiven) -> tuple[Subject, ...]:
    named = _subjects(exposure="exposure_id", user="user_id", item="item_id", chunk="chunk_id")(data)
    target = () if data.target is None else (target_subject(data.target),)
    return tuple(dict.fromkeys((*named, *target)))


def _feedback_check(data: FeedbackGiven) -> None:
    if not -1.0 <= data.value <= 1.0:
        raise InvalidEvent("invalid-value", f"/data/value is {data.value}: it must be in -1…1", "/data/value")
    if (data.head is None) != (data.target is None):
        raise InvalidEvent("invalid-event", "/data/head and /data/target come together", "/data/head")
    if data.target is not None:
        _target_check(data.target)


def _class_subjects(data: ClassChanged) -> tuple[Subject, ...]:
    main = Subject("class", f"{data.head}/{data.class_}")
    return (main,) if data.into is None else (main, Subject("class", f"{data.head}/{data.into}"))


def _class_check(into: bool) -> Callable[[Any], None]:
    def check(data: ClassChanged) -> None:
        if into and data.into is None:
            raise InvalidEvent("invalid-event", "class.merged needs into", "/data/into")
        if into and data.into == data.class_:
            raise InvalidEvent("invalid-event", "a class cannot be merged into itself", "/data/into")
        for subject in _class_subjects(data):
            check_text(subject.id, "/data/class", limit=MAX_ID_BYTES)

    return id_check("head", "class_", "into", rest=check)


def _entity_targets(data: EntityChanged) -> list[str]:
    return [data.into] if isinstance(data.into, str) else data.into or []


def _entity_subjects(data: EntityChanged) -> tuple[Subject, ...]:
    return tuple(dict.fromkeys(Subject("entity", id_) for id_ in (data.entity_id, *_entity_targets(data))))


def _entity_check(needs: str) -> Callable[[Any], None]:
    def check(data: EntityChanged) -> None:
        if not getattr(data, needs) and not data.undo:
            raise InvalidEvent("invalid-event", f"/data needs {needs} (or undo)", f"/data/{needs}")
        if needs == "into" and data.entity_id in _entity_targets(data):
            raise InvalidEvent("invalid-event", "/data/into names entity_id itself", "/data/into")
        for id_ in _entity_targets(data):
            check_text(id_, "/data/into")

    return id_check("entity_id", rest=check)


def _type(name: str, data: type[msgspec.Struct], subjects: Any, check: Any, doc: str, **flags: Any) -> EventType:
    return EventType(name=name, data=data, subjects=subjects, check=check, doc=doc, **flags)


def builtin_types(actions: Iterable[str] = ()) -> tuple[EventType, ...]:
    """Return the event types of the contract; ``actions`` are configured ones besides ``ACTIONS``."""

    document, item, user = _subjects(document="document_id"), _subjects(item="item_id"), _subjects(user="user_id")
    document_id, item_id, user_id = id_check("document_id"), id_check("item_id"), id_check("user_id")
    interaction = _subjects(user="user_id", session="session_id", item="item_id", exposure="exposure_id")
    exposure_check = id_check("exposure_id", "user_id", "session_id", rest=_exposure_check)
    feedback_check = id_check("exposure_id", "item_id", "chunk_id", "user_id", "head", rest=_feedback_check)
    label_check = id_check("head", "exposure_id", rest=_label_check)
    entity = _entity_subjects
    return (
        _type("document.upserted", DocumentUpserted, document, document_id, "A document, whole.", states="whole"),
        _type(
            "document.patched",
            DocumentPatched,
            document,
            document_id,
            "Fields of a document; the text stays.",
            states="part",
        ),
        _type("document.deleted", DocumentRef, document, document_id, "No longer served.", deletes=True),
        _type("document.erased", DocumentRef, document, document_id, "All traces go.", deletes=True, erases=True),
        _type("item.upserted", ItemUpserted, item, item_id, "An item, whole.", states="whole"),
        _type("item.patched", ItemPatched, item, item_id, "Fields of an item.", states="part"),
        _type("item.deleted", ItemRef, item, item_id, "No longer served.", deletes=True),
        _type("item.erased", ItemRef, item, item_id, "All traces go.", deletes=True, erases=True),
        _type("user.upserted", UserUpserted, user, user_id, "A user, whole.", states="whole"),
        _type("user.patched", UserPatched, user, user_id, "Fields of a user.", states="part"),
        _type("user.erased", UserRef, user, user_id, "All traces go.", deletes=True, erases=True),
        _type("interaction.observed", InteractionObserved, interaction, _interaction_check(actions), "Behaviour."),
        _type("exposure.recorded", ExposureRecorded, _exposure_subjects, exposure_check, "One served response."),
        _type("label.observed", LabelObserved, _label_subjects, label_check, "Ground truth for a head."),
        _type("feedback.given", FeedbackGiven, _feedback_subjects, feedback_check, "A judgement of one response."),
        _type("class.upserted", ClassChanged, _class_subjects, _class_check(False), "A class exists."),
        _type("class.merged", ClassChanged, _class_subjects, _class_check(True), "A class goes into another."),
        _type("class.retired", ClassChanged, _class_subjects, _class_check(False), "A class is used no more."),
        _type("entity.merged", EntityChanged, entity, _entity_check("into"), "An entity is another one."),
        _type("entity.split", EntityChanged, entity, _entity_check("into"), "An entity was several."),
        _type("entity.renamed", EntityChanged, entity, _entity_check("name"), "An entity's name."),
        _type("entity.aliased", EntityChanged, entity, _entity_check("aliases"), "Other names of an entity."),
        _type("document.extracted", DocumentExtracted, document, document_id, "What an extractor found in a chunk."),
        _type("drift.detected", DriftDetected, _subjects(policy="policy"), id_check("policy"), "A drift alarm."),
        _type(
            "gate.judged", GateJudged, _subjects(policy="policy"), id_check("policy", "group"), "What the gate says."
        ),
        _type("rule.applied", RuleApplied, _subjects(policy="policy"), id_check("policy", "rule"), "What a rule did."),
    )
