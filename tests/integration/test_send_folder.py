"""``streamfold send DIR`` against a real service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from streamfold.pipelines.cli.subservice import SubService

Run = Callable[..., tuple[int, Any, str]]


def write(name: str, data: bytes | str) -> Path:
    path = Path("notes", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_folder_of_text_and_markdown_becomes_documents(run: Run, service: SubService) -> None:
    write("a/pump.md", "# The green pump\n\nThe pump is started by the lever.")
    write("lamp.txt", "The lamp hangs above the desk.")
    write("deep/er/old.MARKDOWN", b"\xef\xbb\xbfNo heading here.")
    write(".hidden/x.txt", "not this")
    write("a/.draft.md", "nor this")
    write("a/code.py", "nor = 'this'")
    code, sent, _ = run("send", "notes", "--wait")
    assert (code, sent["accepted"], sent["rejected"], sent["visible"]) == (0, 3, 0, True)
    shown = httpx.get(f"{service.url}/v1/documents").json()["items"]
    titles = {one["document_id"]: (one["title"], one["media_type"]) for one in shown}
    assert titles == {
        "a/pump.md": ("The green pump", "text/markdown"),
        "deep/er/old.MARKDOWN": ("old", "text/markdown"),
        "lamp.txt": ("lamp", "text/plain"),
    }
    code, answer, _ = run("query", "how is the pump started?")
    assert answer["chunks"][0]["document_id"] == "a/pump.md"

    assert run("send", "notes")[1]["duplicates"] == 3, "nothing was touched"
    lamp = write("lamp.txt", "The lamp stands on the floor.")
    assert run("send", "notes/", "--wait")[1]["accepted"] == 1
    lamp.write_text("The lamp hangs above the desk.")
    assert run("send", "notes", "--wait")[1]["accepted"] == 1, "what was changed back is news"
    assert run("query", "where is the lamp?")[1]["chunks"][0]["text"] == "The lamp hangs above the desk."


def test_a_file_that_is_no_text_is_refused_by_name_and_line_and_the_others_go_on(run: Run) -> None:
    write("good.txt", "A good text.")
    write("latin.txt", b"first\nsecond\ncaf\xe9\n")
    write("binary.md", b"\x89PNG\0\0")
    write("long.txt", "x" * (2 << 20))
    write("huge.txt", "x" * (13 << 20))
    Path("notes/gone.txt").symlink_to("nowhere")
    code, sent, said = run("send", "notes", "--source", "/refused")
    assert (code, sent["accepted"], sent["rejected"]) == (3, 1, 5)
    refused = {one["file"]: one["problem"] for one in sent["results"]}
    assert set(refused) == {"latin.txt", "binary.md", "long.txt", "huge.txt", "gone.txt"}
    assert refused["latin.txt"]["detail"].startswith("line 3: byte 0xe9")
    assert "line 1" in refused["binary.md"]["detail"]
    assert refused["long.txt"]["code"] == "too-large"
    assert "latin.txt: malformed: line 3: byte 0xe9 is not UTF-8" in said
    code, sent, _ = run("send", "notes", "--dry-run")
    assert (code, sent["accepted"], sent["rejected"]) == (3, 1, 5)


def test_what_does_not_go_with_a_folder_is_a_usage_error(run: Run) -> None:
    Path("empty").mkdir()
    assert run("send", "empty")[0] == 2
    write("a.txt", "text")
    assert run("send", "notes", "--type", "item.upserted")[0] == 2
    assert run("send", "notes", "--map", "x.toml")[0] == 2
    assert run("send", "nowhere")[0] == 2
