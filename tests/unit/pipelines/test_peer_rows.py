"""What is sent as Gorse's comes back as it was, through the fields that are stored of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from streamfold.core.clock import SystemClock
from streamfold.core.events import Acceptor, CloudEvent, EventTypes, builtin_types
from streamfold.pipelines.peers import gorse
from streamfold.pipelines.peers.rows import Made, actions

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALAR = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
NAMES = TEXT.filter(lambda name: name not in ("labels", "_comment"))
LABELS = st.none() | st.dictionaries(NAMES, VALUE, min_size=1, max_size=4) | st.lists(TEXT, max_size=3)


def accepted(made: Made) -> dict[str, Any]:
    """The data as the service logs it."""
    raw = CloudEvent(
        specversion="1.0", id="1", source="/test", type=made.type, time=made.time,
        data=msgspec.Raw(msgspec.json.encode(made.data)),
    )  # fmt: skip
    types = EventTypes(builtin_types())
    event = Acceptor(types, SystemClock()).accept(raw)
    envelope = msgspec.msgpack.decode(event.body)
    return next(json.loads(one) for one in envelope if isinstance(one, bytes))


@given(labels=LABELS, comment=TEXT)
@example(labels={"a": "[1]", "b": '"x"', "c": "{"}, comment="")
def test_a_user_comes_back(labels: Any, comment: str) -> None:
    data = accepted(gorse.user_event(gorse.User(UserId="u", Labels=labels, Comment=comment)))
    assert gorse.shown_user("u", data) == {"UserId": "u", "Labels": labels, "Comment": comment}


@given(labels=LABELS, comment=TEXT, categories=st.lists(TEXT, max_size=3), hidden=st.booleans())
def test_an_item_comes_back(labels: Any, comment: str, categories: list[str], hidden: bool) -> None:
    row = gorse.Item(
        ItemId="i", Labels=labels, Comment=comment, Categories=categories, IsHidden=hidden,
        Timestamp="2025-01-02 03:04:05 +0100 CET",
    )  # fmt: skip
    assert gorse.shown_item("i", accepted(gorse.item_event(row))) == {
        "ItemId": "i", "Labels": labels, "Comment": comment, "Categories": categories, "IsHidden": hidden,
        "Timestamp": "2025-01-02T02:04:05Z",
    }  # fmt: skip


@given(
    type_=st.sampled_from(["like", "star", "read", "anything"]), labels=LABELS.filter(lambda one: one != []),
    value=st.floats(0.5, 9), comment=TEXT,
)  # fmt: skip
def test_feedback_comes_back(type_: str, labels: Any, value: float, comment: str) -> None:
    row = gorse.Feedback(FeedbackType=type_, UserId="u", ItemId="i", Value=value, Labels=labels, Comment=comment)
    assert gorse.shown_feedback(accepted(gorse.feedback_event(row, actions())), "2025-01-01T00:00:00.000000Z") == {
        "FeedbackType": type_, "UserId": "u", "ItemId": "i", "Value": value, "Labels": labels, "Comment": comment,
        "Timestamp": "2025-01-01T00:00:00Z",
    }  # fmt: skip
