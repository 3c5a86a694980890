"""The commands against a real service in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.subservice import SubService

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(
    service: SubService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command against the service; return its exit code and its body (or text)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", service.url)

    def run(*arguments: str, text: bool = False) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*arguments, "--quiet", *([] if text else ["--json"])])
        out = capsys.readouterr().out
        return code, out if text else [json.loads(line) for line in out.splitlines()]

    return run


def test_from_init_to_an_answer(run: Run) -> None:
    assert main(["init"]) == 0
    code, [sent] = run("send", "sample.jsonl", "--wait")
    assert (code, sent["accepted"] + sent["duplicates"], sent["visible"]) == (0, 7, True)
    code, [again] = run("send", "sample.jsonl", "--wait")
    assert (code, again["accepted"], again["duplicates"]) == (0, 0, 7)

    code, [answer] = run("query", "how long may a customer return an item?", "--explain")
    assert (code, answer["chunks"][0]["document_id"]) == (0, "refunds")
    assert "refunds" in run("query", "how long may a customer return an item?", text=True)[1]
    code, [trending] = run("trending", "-n", "1")
    assert (code, trending["items"][0]["item_id"]) == (0, "lamp")
    assert "lamp" in run("trending", "--category", "light", text=True)[1]

    code, [trace] = run("trace", "sample-5", "--source", "/sample")
    assert (code, trace["event"]["data"]["item_id"]) == (0, "kettle")
    assert "folded" in run("trace", "sample-5", text=True)[1]
    code, tailed = run("tail", "--from", "1", "--no-follow", "--type", "document.upserted")
    assert (code, [line["event"]["id"] for line in tailed]) == (0, ["sample-1", "sample-2"])
    assert "sample-1" in run("tail", "--no-follow", text=True)[1]


def test_some_rejected_has_exit_code_3_and_names_the_lines(run: Run) -> None:
    rows = [{"user_id": "u"}, {"user_id": ""}, {"user_id": "v", "unknown": 1}]
    Path("u.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, [sent] = run("send", "u.jsonl", "--type", "user.upserted")
    assert (code, sent["accepted"], sent["rejected"]) == (3, 1, 2)
    assert [result["index"] for result in sent["results"]] == [1, 2]
    Path("all.jsonl").write_text(json.dumps(rows[1]))
    assert run("send", "all.jsonl", "--type", "user.upserted")[0] == 3


def test_operating(run: Run) -> None:
    code, [status] = run("status")
    assert (code, {p["policy"] for p in status["policies"]}) == (0, {"trending", "graph_index"})
    assert "running" in run("status", text=True)[1]
    assert run("policies", "verify", "trending", text=True) == (0, "verify: equal\n")
    assert run("policies", "pause", "trending", "--reason", "test")[0] == 0
    assert "paused" in run("policies", "list", text=True)[1]
    assert run("policies", "resume", "trending")[0] == 0
    assert run("policies", "rebuild", "trending")[0] == 0
    assert "graph_index" in run("plugins", text=True)[1]
    assert run("dead-letters", "list") == (0, [{"items": [], "next_cursor": None}])


def test_a_version_is_added_promoted_and_rolled_back(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert run("send", "sample.jsonl", "--wait")[0] == 0
    code, [added] = run("policies", "add", "trending", "--set", "half_lives_s=[60]", "--rate", "9000", "--wait", "300")
    assert (code, added["job"]["state"]) == (0, "done")
    assert added["estimate"]["events"] >= 4
    assert "estimated cost: " in run("policies", "add", "trending", "--set", "max_items=7", text=True)[1]
    code, [refused] = run("policies", "promote", "trending")
    assert (code, refused["code"]) == (1, "invalid-value"), "two shadows: one must be named"
    label = added["policy"].partition("@")[2]
    assert label in run("policies", "list", text=True)[1]
    code, [other] = run("policies", "add", "trending", "--set", "max_items=9")
    assert run("policies", "retire", "trending", "--version", other["policy"].partition("@")[2])[0] == 0
    code, [promoted] = run("policies", "promote", "trending", "--version", label, "--reason", "faster")
    assert (code, promoted["group"]) == (0, added["policy"])
    assert run("trending", "-n", "1")[0] == 0
    code, text = run("policies", "rollback", "trending", text=True)
    assert (code, "live from position" in text) == (0, True)
    code, [refused] = run("policies", "skip", "trending", "sample-5")
    assert (code, refused["code"]) == (1, "policy-conflict"), "it is not halted"
    assert "faster" in run("audit", "-n", "9", text=True)[1]
    code, [trail] = run("audit", "--limit", "2")
    assert [item["action"] for item in trail["items"]] == ["rollback", "promote"]
    capsys.readouterr()
    assert run("policies", "add", "trending", "--set", "nonsense")[0] == 2
    assert run("policies", "add", "nobody")[0] == 1


def test_what_is_not_there_fails_with_the_contracts_code(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trace", "nobody"], ["policies", "verify", "nobody"], ["dead-letters", "show", "999"]):
        code, [body] = run(*arguments)
        assert (code, body["code"]) == (1, "not-found")
    assert run("dead-letters", "retry")[0] == 2
