"""The command line without a service: options, exit codes, local commands, files to events."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamfold.core.clock import SystemClock
from streamfold.core.errors import InvalidEvent
from streamfold.core.events import Acceptor, EventTypes, builtin_types, decode_http
from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.rows import Line, read_lines
from streamfold.pipelines.cli.state import CliError, hoist_globals

COMMANDS = [
    "init",
    "doctor",
    "migrate",
    "serve",
    "ingest",
    "worker",
    "demo",
    "send",
    "query",
    "trending",
    "recommend",
    "rank",
    "similar",
    "classify",
    "status",
    "trace",
    "tail",
    "plugins",
    "audit",
    "erase",
    "backup",
    "restore",
    "retain",
    "export",
    "size",
    "evaluate",
    "new-plugin",
    "check-plugin",
    "dev",
    "dead-letters",
    "policies",
    "keys",
    "import",
]
MAP = """
type = "interaction.observed"
id = "{user}-{item}"
time = { column = "ts", format = "s" }
[data]
user_id = "user"
item_id = "item"
value = { column = "stars", type = "float" }
action = { value = "rating" }
"""
RATINGS = "user,item,stars,ts\nu1,i1,4.5,1362062307\nu2,i1,3,1362062308\n"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STREAMFOLD_URL", "STREAMFOLD_CONFIG", "STREAMFOLD_WORKSPACE", "STREAMFOLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def lines(path: Path | str, *, type_: str = "", mapping: Path | None = None, source: str = "") -> list[Line]:
    return list(read_lines(str(path), type_=type_, mapping=mapping, source=source))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: streamfold" in capsys.readouterr().out


def test_help_lists_exactly_the_commands_of_today(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == COMMANDS


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'pydantic', 'fastapi', 'sqlalchemy', 'httpx', 'torch', 'faiss', 'streamfold.core'}"
    command = "import sys; from streamfold.pipelines.cli import main; main(['--help'])"
    code = f"{command}; assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_usage_errors_have_exit_code_2(tmp_path: Path) -> None:
    assert main(["no-such-command"]) == 2
    assert main(["send"]) == 2
    assert main(["send", "missing.jsonl", "--dry-run"]) == 2
    assert main(["status", "--config", "missing.toml"]) == 2
    Path("rows.csv").write_text(RATINGS)
    assert main(["send", "rows.csv", "--dry-run"]) == 2


def test_an_unreachable_service_has_exit_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"user_id": "u"}\n')
    for command in (["status"], ["query", "x"], ["send", "rows.jsonl", "--type", "user.upserted"]):
        assert main([*command, "--url", "http://127.0.0.1:1"]) == 4
        assert "streamfold serve" in capsys.readouterr().err


def test_global_options_may_follow_the_command() -> None:
    moved = hoist_globals(["query", "--json", "x", "--url", "http://h", "--workspace=w", "--", "--json"])
    assert moved == ["--json", "--url", "http://h", "--workspace=w", "query", "x", "--", "--json"]


def test_init_writes_settings_equal_to_the_defaults_and_overwrites_nothing() -> None:
    assert main(["init", "shop"]) == 0
    written = load_settings("shop/streamfold.toml")
    assert written == Settings()
    Path("shop/sample.jsonl").unlink()
    assert main(["init", "shop"]) == 1
    assert not Path("shop/sample.jsonl").exists()


def test_the_sample_is_accepted() -> None:
    main(["init"])
    acceptor = Acceptor(EventTypes(builtin_types()), SystemClock())
    for raw in decode_http("application/x-ndjson", {}, Path("sample.jsonl").read_bytes()):
        assert not isinstance(raw, InvalidEvent)
        acceptor.accept(raw)
    assert main(["send", "sample.jsonl", "--dry-run"]) == 0


def test_migrate_check_says_whether_the_ledger_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--check"]) == 1
    assert main(["migrate"]) == 0
    assert main(["migrate", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"current": True}


def test_doctor_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("streamfold.toml").write_text('[backends.encoder]\nuse = "hashing"\n[backends.chunker]\nuse = "sentences"\n')
    assert main(["doctor", "--url", "http://127.0.0.1:1", "--json"]) == 0
    assert all(check["ok"] for check in json.loads(capsys.readouterr().out)["checks"])
    Path("streamfold.toml").write_text("[policies.trendin]\n")
    assert main(["doctor", "--url", "http://127.0.0.1:1"]) == 1
    assert "trending" in capsys.readouterr().out


def test_worker_and_ingest_refuse_what_the_embedded_shape_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker"]) == 1
    assert main(["ingest"]) == 1
    assert main(["worker", "--role", "cook"]) == 2
    assert "PostgreSQL" in capsys.readouterr().err


def test_rows_become_events_with_stable_ids() -> None:
    Path("u.jsonl").write_text('{"user_id": "a"}\n\n{"user_id": "a"}\n')
    first, second = lines("u.jsonl", type_="user.upserted")
    assert [first, second] == lines("u.jsonl", type_="user.upserted")
    one, two = json.loads(first.event), json.loads(second.event)
    assert one["id"] != two["id"], "equal rows of one file are distinct events"
    assert (one["type"], one["source"], one["data"]) == ("user.upserted", "/send/u.jsonl", {"user_id": "a"})
    assert second.number == 3


def test_csv_is_mapped() -> None:
    Path("r.csv").write_text(RATINGS)
    Path("map.toml").write_text(MAP)
    first, _ = lines("r.csv", mapping=Path("map.toml"), source="/shop")
    event = json.loads(first.event)
    assert (event["id"], event["source"], event["time"]) == ("u1-i1", "/shop", "2013-02-28T14:38:27+00:00")
    assert event["data"] == {"user_id": "u1", "item_id": "i1", "value": 4.5, "action": "rating"}


def test_bad_lines_are_named_and_the_rest_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.csv").write_text(RATINGS + "u3,i1,many,1\nu4,i1\n")
    Path("map.toml").write_text(MAP)
    assert main(["send", "r.csv", "--map", "map.toml", "--dry-run"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("accepted 2 duplicates 0 rejected 2")
    assert "line 4" in err
    assert "line 5" in err


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": NaN}', '{"specversion": "1.0"', "\ud800", '{"a": "\\ud800"}'])
def test_no_input_breaks_the_reader(text: str) -> None:
    Path("bad.jsonl").write_text(text, errors="surrogatepass")
    [line] = lines("bad.jsonl", type_="user.upserted")
    assert line.problem


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"user_id": "a"}\n'), encoding="utf-8"))
    assert main(["send", "-", "--type", "user.upserted", "--dry-run", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["accepted"], err) == (1, "")


HEADLESS = 'columns = ["user", "item", "stars", "ts"]\nseparator = "SEPARATOR"\n' + MAP


@pytest.mark.parametrize(("separator", "row"), [("::", "u1::i,1::4.5::1362062307"), (";", 'u1;"i,1";4.5;1362062307')])
def test_a_mapping_names_the_columns_of_a_file_without_a_header(separator: str, row: str) -> None:
    Path("ratings.dat").write_text(f"{row}\n\n{row}{separator}5\n")
    Path("map.toml").write_text(HEADLESS.replace("SEPARATOR", separator))
    good, bad = lines("ratings.dat", mapping=Path("map.toml"))
    assert json.loads(good.event)["data"] == {"user_id": "u1", "item_id": "i,1", "value": 4.5, "action": "rating"}
    assert json.loads(good.event)["id"] == "u1-i,1"
    assert (good.number, bad.number, bad.problem) == (1, 3, "5 columns instead of the mapping's 4")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ('columns = "user"', "'columns' must be a list"),
        ('columns = ["a", 1]', "'columns' must be a list"),
        ('columns = ["a"]\nseparator = ""', "'separator' must be a text"),
        ('separator = "::"', "'separator' needs 'columns'"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(head: str, said: str) -> None:
    Path("ratings.dat").write_text("u1::i1::4::1362062307\n")
    Path("map.toml").write_text(head + "\n" + MAP)
    with pytest.raises(CliError, match=said):
        lines("ratings.dat", mapping=Path("map.toml"))
