"""What models write is read as far as it makes sense, and nothing that comes out of it is more than an event holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfold.core import Extraction
from streamfold.core.clock import ManualClock
from streamfold.core.events import Acceptor, EventTypes, builtin_types
from streamfold.plugins.llm._formats import MAX_ENTITIES, Unreadable, merged, read_answer

GOOD = """entity<|#|>Ada Lovelace<|#|>Person<|#|>Ada wrote programs.
entity<|#|>London<|#|>Location<|#|>A city.
relation<|#|>Ada Lovelace<|#|>London<|#|>Home, Living<|#|>Ada lived in London.
<|COMPLETE|>"""


def names(found: Extraction) -> list[str]:
    return [one.name for one in found.entities]


def pairs(found: Extraction) -> list[tuple[str, str]]:
    return [(one.source, one.target) for one in found.relations]


def test_tuples_are_read_with_their_keywords() -> None:
    found = read_answer(GOOD, "tuple", cut=False)
    assert [(one.name, one.type, one.description) for one in found.entities] == [
        ("Ada Lovelace", "Person", "Ada wrote programs."),
        ("London", "Location", "A city."),
    ]
    (relation,) = found.relations
    assert (relation.keywords, relation.description) == (["home", "living"], "Ada lived in London.")


@pytest.mark.parametrize(
    "broken",
    [
        GOOD.replace("<|#|>", "<|#>"),
        GOOD.replace("<|#|>", "<#|>"),
        GOOD.replace("<|#|>", "<||#||>"),
        GOOD.replace("<|#|>", "<#>"),
        GOOD.replace("relation<", "relationship<"),
        GOOD.replace("entity<", "- Entity<"),
        GOOD.replace("\nentity", "<|#|>entity"),
        "Here it is:\n```\n" + GOOD + "\n```",
        "<think>entity<|#|>No<|#|>No<|#|>No</think>" + GOOD,
        GOOD.replace("<|COMPLETE|>", "<|complete|>\nentity<|#|>After<|#|>Other<|#|>The end."),
        GOOD.replace("<|COMPLETE|>", ""),
        GOOD.replace("Ada Lovelace<", '"Ada Lovelace"<'),
        GOOD.replace("Ada Lovelace", "Ada Lovelace"),
    ],
)
def test_what_models_get_wrong_in_tuples_is_mended(broken: str) -> None:
    found = read_answer(broken, "tuple", cut=False)
    assert names(found) == ["Ada Lovelace", "London"]
    assert pairs(found) == [("Ada Lovelace", "London")]


def test_records_that_lack_something_are_dropped() -> None:
    lines = [
        "entity<|#|>No Description<|#|>Person<|#|>",
        "entity<|#|>Too<|#|>Few",
        "entity<|#|>__proto__<|#|>Person<|#|>d",
        f"entity<|#|>{'x' * 300}<|#|>Person<|#|>d",
        "relation<|#|>A<|#|>a<|#|>k<|#|>of itself",
        "entity<|#|>Kept<|#|>Person<|#|>d",
    ]
    found = read_answer("\n".join(lines), "tuple", cut=False)
    assert (names(found), pairs(found)) == (["Kept"], [])


def test_an_answer_that_was_cut_gives_its_whole_records() -> None:
    assert names(read_answer(GOOD[:70], "tuple", cut=True)) == ["Ada Lovelace"]
    value = {"entities": [{"name": n, "type": "T", "description": "d"} for n in ("One", "Two", "Three")]}
    assert names(read_answer(json.dumps(value)[:-20], "json", cut=True)) == ["One", "Two"]


def test_nothing_found_is_an_answer_and_chatter_is_none() -> None:
    assert read_answer("<|COMPLETE|>", "tuple", cut=False) == Extraction(entities=[], relations=[])
    assert not read_answer('{"entities": [], "relationships": []}', "json", cut=False).entities
    for text, format in (("I cannot help.", "tuple"), ("I cannot help.", "json"), ('{"a": 1}', "json"), ("", "tuple")):
        with pytest.raises(Unreadable):
            read_answer(text, format, cut=False)


def test_json_is_read_with_keywords_as_text_or_list_and_with_times() -> None:
    value = {
        "entities": [{"name": "Ada", "type": "Person", "description": "d"}, "no object", {"name": 3}],
        "relationships": [
            {
                "source": "Ada", "target": "Bank", "keywords": ["Works At"], "description": "d",
                "valid_from": "2001", "valid_to": "2003-04-05",
            },
            {"source": "Ada", "target": "Club", "keywords": "member,guest", "description": "", "valid_to": "soon"},
        ],
    }  # fmt: skip
    found = read_answer("```json\n" + json.dumps(value) + "\n```", "json", cut=False)
    one, other = found.relations
    assert names(found) == ["Ada"]
    assert (one.keywords, one.valid_from) == (["works at"], datetime(2001, 1, 1, tzinfo=UTC))
    assert one.valid_to == datetime(2003, 4, 5, tzinfo=UTC)
    assert (other.keywords, other.valid_to) == (["member", "guest"], None)


def test_gleaning_keeps_the_longer_description() -> None:
    more = read_answer("entity<|#|>london<|#|>City<|#|>A city on the Thames.\n<|COMPLETE|>", "tuple", cut=False)
    both = merged(read_answer(GOOD, "tuple", cut=False), more)
    assert {one.name.lower(): one.description for one in both.entities}["london"] == "A city on the Thames."
    assert len(both.entities) == 2


PARTS = [
    "entity",
    "relation",
    "<|#|>",
    "<|#",
    "#|>",
    "\n",
    "<|COMPLETE|>",
    '{"entities": [',
    '"name"',
    "{",
    "}",
    "]",
    ":",
]


@given(
    st.lists(st.sampled_from(PARTS) | st.text(max_size=20), max_size=40).map("".join),
    st.sampled_from(["tuple", "json"]),
    st.booleans(),
)
def test_whatever_is_answered_can_be_logged_or_is_unreadable(text: str, format: str, cut: bool) -> None:
    acceptor = Acceptor(EventTypes(builtin_types()), ManualClock())
    try:
        found = read_answer(text, format, cut=cut)
    except Unreadable:
        return
    data = {
        "document_id": "d", "input_position": 1, "chunk_hash": "h", "extractor": "e",
        "entities": list(found.entities), "relations": list(found.relations),
    }  # fmt: skip
    assert acceptor.accept_data("document.extracted", data, id="x", source="s").type == "document.extracted"


def test_an_endless_answer_is_bounded() -> None:
    lines = [f"entity<|#|>Name {n}<|#|>Other<|#|>{'d ' * 5_000}" for n in range(1_000)]
    found = read_answer("\n".join(lines), "tuple", cut=False)
    assert len(found.entities) == MAX_ENTITIES
    assert max(len(one.description or "") for one in found.entities) <= 2_000
