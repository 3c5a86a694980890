"""Others' files to events: what a row becomes, what is wrong with one, and that ids follow from the content."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.clock import SystemClock
from streamfold.core.events import Acceptor, EventTypes, builtin_types
from streamfold.core.events.codecs import decode_structured
from streamfold.pipelines.cli.peer_files import gorse_files, metarank_files, read_files
from streamfold.pipelines.cli.rows import Line
from streamfold.pipelines.cli.state import CliError
from streamfold.pipelines.peers import rows
from streamfold.pipelines.peers.rows import actions, parse_time

KNOWN = actions(["share"])
AT = "2020-01-01 01:01:01.000000001 +0000 UTC"


def read(folder: Path, find: Any = gorse_files) -> tuple[list[dict[str, Any]], list[Line]]:
    """The events that the service would take, and the lines that are none."""
    lines = list(read_files(find(folder, KNOWN)))
    acceptor = Acceptor(EventTypes(builtin_types(["share"])), SystemClock())
    events = [line for line in lines if not line.problem]
    for line in events:
        acceptor.accept(decode_structured(line.event))
    return [json.loads(line.event) for line in events], [line for line in lines if line.problem]


def test_the_examples_of_rows_hold() -> None:
    assert doctest.testmod(rows).failed == 0


def test_gorses_lines_become_events_users_and_items_first(tmp_path: Path) -> None:
    (tmp_path / "feedback.jsonl").write_text(
        f'{{"FeedbackType":"star","UserId":"u","ItemId":"i","Value":0,"Timestamp":"{AT}","Comment":""}}\n\n'
        '{"FeedbackType":"share","UserId":"u","ItemId":"i","Value":2,"Timestamp":"0001-01-01T00:00:00Z"}\n'
    )
    (tmp_path / "items.jsonl").write_text(
        f'{{"ItemId":"i","IsHidden":true,"Categories":["x"],"Timestamp":"{AT}","Labels":{{"a":["b"]}},"Comment":"c"}}'
    )
    with gzip.open(tmp_path / "users.jsonl.gz", "wt") as file:
        file.write('{"UserId":"u","Labels":{"性别":"男"},"Comment":""}\n')
    (tmp_path / "notes.txt").write_text("not one of them")
    events, problems = read(tmp_path)
    assert problems == []
    assert [one["type"] for one in events] == ["user.upserted", "item.upserted", *["interaction.observed"] * 2]
    assert events[0]["data"]["properties"] == {"性别": "男"}
    assert events[1]["data"] == {
        "item_id": "i", "available": False, "categories": ["x"], "properties": {"a": ["b"]}, "title": "c",
        "published_at": "2020-01-01T01:01:01+00:00",
    }  # fmt: skip
    star, share = events[2:]
    assert (star["data"]["action"], star["data"]["value"], star["time"]) == ("like", None, "2020-01-01T01:01:01Z")
    assert star["data"]["context"] == {"feedback_type": "star"}
    assert (share["data"]["action"], share["data"]["value"], "time" in share) == ("share", 2.0, False)
    assert [one["id"] for one in read(tmp_path)[0]] == [one["id"] for one in events]
    assert len({one["id"] for one in events}) == 4


def test_bytes_read_end_at_the_size_of_all_files(tmp_path: Path) -> None:
    for name in ("users", "items"):
        row = json.dumps({f"{name[:-1].title()}Id": "x" * 50})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * 500)
    read_bytes = [line.bytes_read for line in read_files(gorse_files(tmp_path, KNOWN))]
    assert read_bytes == sorted(read_bytes)
    assert read_bytes[-1] == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "data"),
    [
        ("users.csv", 'user_id,labels\nu,"a|b"\n', {"user_id": "u", "properties": {"labels": ["a", "b"]}}),
        ("users.csv", 'u,"{""a"": 1}"\n', {"user_id": "u", "properties": {"a": 1}}),
        (
            "items.tsv",
            "item_id\tis_hidden\tcategories\ttime_stamp\tlabels\tdescription\tother\ni\t1\tx|y\t\t\tA lamp\tz\n",
            {
                "item_id": "i", "available": False, "categories": ["x", "y"], "properties": {}, "title": "A lamp",
                "published_at": None,
            },
        ),
        (
            "feedback.csv",
            "FeedbackType,UserId,ItemId,Value,Timestamp\nrating,u,i,4.5,2020-01-01\n",
            {"user_id": "u", "item_id": "i", "action": "rating", "value": 4.5, "context": None},
        ),
        (
            "feedback.csv",
            "like,u,i,1599391467\n",
            {"user_id": "u", "item_id": "i", "action": "like", "value": None, "context": None},
        ),
    ],
)  # fmt: skip
def test_gorses_csv_with_and_without_a_header(tmp_path: Path, name: str, text: str, data: dict[str, Any]) -> None:
    (tmp_path / name).write_text(text)
    [event], problems = read(tmp_path)
    assert event["data"] == data
    assert problems == []


def test_bad_rows_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    good = '{"FeedbackType":"like","UserId":"u","ItemId":"i"}'
    bad = [
        "{", "[]", '{"UserId":"u","ItemId":"i"}', good.replace('"u"', "7"), good.replace("like", ""),
        good.replace("like", "rating"), good[:-1] + ',"Timestamp":"soon"}', good[:-1] + ',"Labels":' + "[" * 9999,
    ]  # fmt: skip
    (tmp_path / "feedback.jsonl").write_bytes("\n".join([*bad, good]).encode() + b'\n{"UserId":"\xff"}\n')
    (tmp_path / "users.csv").write_bytes(b"user_id,labels\nu,1,2\n\xff,a\nv,[1\nw,ok\n")
    events, problems = read(tmp_path)
    assert [one["data"].get("user_id") for one in events] == ["w", "u"]
    names = [f"users.csv:{n}" for n in (2, 3, 4)] + [f"feedback.jsonl:{n}" for n in (*range(1, 9), 10)]
    assert [line.name for line in problems] == names


def test_a_file_that_ends_early_is_one_problem(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"UserId":"u"}\n' * 1000)
    (tmp_path / "users.jsonl.gz").write_bytes(packed[:-20])
    events, problems = read(tmp_path)
    assert len(problems) == 1
    assert "cannot be read on" in problems[0].problem
    assert {one["data"]["user_id"] for one in events} <= {"u"}


def test_metaranks_events_in_files_and_arrays(tmp_path: Path) -> None:
    ranking = {"event": "ranking", "id": "r", "timestamp": "1599391467000", "user": "u", "items": [{"id": "i"}]}
    click = {
        "event": "interaction",
        "id": "c",
        "timestamp": 1599391468000,
        "ranking": "r",
        "item": "i",
        "type": "click",
    }
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(ranking) + "\n" + json.dumps({"event": "train", "id": "t"}) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([click, {"event": "item", "id": "x"}], indent=1))
    events, problems = read(tmp_path, metarank_files)
    assert [one["type"] for one in events] == ["exposure.recorded", "interaction.observed"]
    assert events[1]["data"]["exposure_id"] == events[0]["data"]["exposure_id"] == "r"
    assert [one["time"] for one in events] == ["2020-09-06T11:24:27Z", "2020-09-06T11:24:28Z"]
    assert [line.name for line in problems] == ["a.jsonl.gz:2", "b.json:2"]


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dump.bin").write_bytes(b"\0\1")
    for find in (gorse_files, metarank_files):
        for source in (tmp_path, tmp_path / "dump.bin", tmp_path / "nowhere"):
            with pytest.raises(CliError):
                find(source, KNOWN)


@pytest.mark.parametrize("text", ["never", "-5", "1900-01-01", "9999-12-31T23:59:59-14:00", "99999999999999999", "inf"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Timestamp is"):
        parse_time(text, "Timestamp")
