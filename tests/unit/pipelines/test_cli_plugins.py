"""``new-plugin``, ``check-plugin`` and ``dev`` without a service: what is written, found, checked, folded, refused."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.pipelines.cli import main

Run = Callable[..., tuple[int, str, str]]
MODULE = "streamfold_dwell"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("STREAMFOLD_URL", "STREAMFOLD_CONFIG", "STREAMFOLD_WORKSPACE", "STREAMFOLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield
    sys.modules.pop(MODULE, None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def edit(old: str, new: str) -> None:
    file = Path("dwell/src/streamfold_dwell.py")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def events(*values: float) -> str:
    lines = [
        {"specversion": "1.0", "id": f"v{n}", "source": "/t", "type": "interaction.observed",
         "data": {"user_id": "ada", "item_id": "lamp", "action": "view", "value": value}}
        for n, value in enumerate(values)
    ]  # fmt: skip
    Path("events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "events.jsonl"


# -- new-plugin -------------------------------------------------------------------------------------------------------
def test_new_plugin_writes_an_installable_package_whose_policy_passes_all_checks(run: Run) -> None:
    code, out, _ = run("new-plugin", "dwell")
    assert code == 0
    assert "pip install -e dwell" in out
    written = {str(path.relative_to("dwell")) for path in Path("dwell").rglob("*") if path.is_file()}
    assert written == {"pyproject.toml", "README.md", "src/streamfold_dwell.py", "tests/test_streamfold_dwell.py"}
    project = tomllib.loads(Path("dwell/pyproject.toml").read_text())
    assert project["project"]["entry-points"]["streamfold"] == {"dwell": MODULE}
    assert not any("PLUGIN_" in path.read_text() for path in Path("dwell").rglob("*.*") if path.is_file())

    code, out, _ = run("check-plugin", "dwell", "--json", "--quiet")
    body = json.loads(out)
    assert (code, body["plugin"], body["passed"]) == (0, "dwell", True)
    assert [(p["policy"], p["version"]) for p in body["policies"]] == [("dwell", 1)]
    assert {check["state"] for check in body["policies"][0]["checks"]} == {"passed"}


@pytest.mark.parametrize("name", ["Dwell", "7up", "a b", "../x", "", "a--b", "x" * 41, "trending"])
def test_new_plugin_refuses_names_that_cannot_be(run: Run, name: str) -> None:
    code, _, err = run("new-plugin", name)
    assert (code, list(Path().iterdir())) == (2, [])
    assert "NAME" in err


def test_new_plugin_overwrites_nothing(run: Run) -> None:
    Path("dwell").mkdir()
    Path("dwell/notes.txt").write_text("mine")
    assert run("new-plugin", "dwell")[0] == 1
    assert [path.name for path in Path("dwell").iterdir()] == ["notes.txt"]


def test_a_name_of_several_parts_is_a_module_and_a_class(run: Run) -> None:
    assert run("new-plugin", "time-on_page", "--dir", "here")[0] == 0
    text = Path("here/src/streamfold_time_on_page.py").read_text()
    assert "class TimeOnPage(Policy):" in text
    assert 'name = "time-on_page"' in text


# -- check-plugin -----------------------------------------------------------------------------------------------------
def test_check_plugin_fails_with_exit_code_1_and_says_what_to_do(run: Run) -> None:
    run("new-plugin", "dwell")
    edit(
        "        total, count = stores",
        "        import time\n\n        data_s = time.time()\n        total, count = stores",
    )
    edit("(total + data.value, count + 1))", "(total + data_s, count + 1))")
    code, out, _ = run("check-plugin", "dwell", "--quiet")
    assert code == 1
    assert "clock: the stores depend on the clock" in out
    assert "event.at_s" in out
    code, out, _ = run("check-plugin", "dwell", "--json", "--quiet")
    checks = {check["name"]: check for check in json.loads(out)["policies"][0]["checks"]}
    assert (code, checks["clock"]["state"], checks["forget"]["state"]) == (1, "failed", "not run")


def test_check_plugin_takes_a_file_and_some_checks(run: Run) -> None:
    run("new-plugin", "dwell")
    code, out, _ = run("check-plugin", "dwell/src/streamfold_dwell.py", "--only", "spec", "--only", "forget", "--quiet")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["dwell", "spec", "passed"],
        ["dwell", "forget", "passed"],
    ]


def test_check_plugin_takes_a_built_in_policy_and_events_of_ones_own(run: Run) -> None:
    code, out, _ = run("check-plugin", "trending", "--only", "folds", "--events", events(1.0), "--json", "--quiet")
    assert code == 0
    assert [check["name"] for check in json.loads(out)["policies"][0]["checks"]] == ["folds"]


def test_what_is_no_plugin_is_a_usage_error_with_the_nearest_name(run: Run) -> None:
    assert "did you mean 'trending'" in run("check-plugin", "trendin")[2]
    assert run("check-plugin", "trendin")[0] == 2
    assert run("check-plugin", "missing.py")[0] == 2
    assert run("check-plugin", "trending", "--only", "forgets")[0] == 2
    Path("empty").mkdir()
    code, _, err = run("check-plugin", "empty")
    assert (code, "new-plugin" in err) == (2, True)
    Path("empty/pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "entry-points.streamfold" in run("check-plugin", "empty")[2]
    Path("empty/pyproject.toml").write_text("[project.entry-points.streamfold]\nx = 'x_module'\n")
    assert "x_module" in run("check-plugin", "empty")[2]
    Path("empty/pyproject.toml").write_text("[project")
    assert run("check-plugin", "empty")[0] == 2


def test_code_that_cannot_be_imported_is_said_in_a_line(run: Run) -> None:
    run("new-plugin", "dwell")
    edit("import Any", "import Anything")
    code, _, err = run("check-plugin", "dwell")
    assert code == 1
    assert "cannot be imported: ImportError" in err
    Path("none.py").write_text("x = 1\n")
    assert "registers no policy" in run("check-plugin", "none.py")[2]


# -- dev --------------------------------------------------------------------------------------------------------------
def test_dev_prints_the_changes_of_each_event_with_time_and_bytes(run: Run) -> None:
    run("new-plugin", "dwell")
    code, out, _ = run("dev", "dwell", "--events", events(10.0, 20.0, 1e9), "--once", "--json", "--quiet")
    first, second, third, summary = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert first["changes"] == ["+ sums['lamp'] = [10.0, 1]", "+ mean['lamp'] = 10.0"]
    assert second["changes"] == ["+ sums['lamp'] = [30.0, 2]", "+ mean['lamp'] = 15.0"]
    assert (third["changes"], third["skipped"]) == ([], "a value of 1e+09 is not within 0 and 86400")
    assert first["bytes"] > 0
    assert {name: summary[name] for name in ("folded", "changed", "skipped", "refused")} == {
        "folded": 3, "changed": 2, "skipped": 1, "refused": 0,
    }  # fmt: skip
    assert summary["stores"]["mean"]["rows"] == 1
    text = run("dev", "dwell", "--events", "events.jsonl", "--once")[1]
    assert "+ mean['lamp'] = 15.0" in text
    assert "3 events folded, 2 changed a store, 1 skipped" in text


def test_dev_shows_where_a_fold_failed(run: Run) -> None:
    run("new-plugin", "dwell")
    edit("if not 0 <= data.value", "1 / 0\n        if not 0 <= data.value")
    code, out, err = run("dev", "dwell", "--events", events(1.0), "--once")
    assert code == 1
    assert "FAILED" in out
    assert "1 / 0" in err


def test_dev_names_events_that_the_service_would_refuse(run: Run) -> None:
    bad = {"specversion": "1.0", "id": "b", "source": "/t", "type": "interaction.observed", "data": {"item_id": ""}}
    Path("bad.jsonl").write_text(json.dumps(bad) + "\n")
    code, out, err = run("dev", "trending", "--events", "bad.jsonl", "--once")
    assert (code, "1 refused" in out) == (0, True)
    assert "position 1" in err


def test_dev_refuses_what_it_cannot_read(run: Run) -> None:
    assert run("dev", "trending")[0] == 2
    assert run("dev", "trending", "--events", "missing.jsonl", "--once")[0] == 2
    assert run("dev", "trending", "--events", "tail:many", "--once")[0] == 2
    assert run("dev", "trending", "--events", "tail:0", "--once")[0] == 2
    Path("bad.jsonl").write_text("{\n")
    assert run("dev", "trending", "--events", "bad.jsonl", "--once")[0] == 2
    code, _, err = run("dev", "trending", "--events", "tail:5", "--once", "--url", "http://127.0.0.1:1")
    assert (code, "streamfold serve" in err) == (4, True)


def test_dev_says_so_when_the_plugin_has_no_such_policy(run: Run) -> None:
    run("new-plugin", "dwell")
    code, _, err = run("dev", "dwell", "--policy", "dwel", "--events", events(1.0), "--once")
    assert code == 1
    assert "did you mean 'dwell'" in err


def test_what_is_loaded_again_is_the_saved_code(run: Run) -> None:
    from streamfold.pipelines.cli.plugin_source import find_plugin

    run("new-plugin", "dwell")
    plugin: Any = find_plugin("dwell")
    before = plugin.load()
    edit("version = 1", "version = 2")
    assert (before.Dwell.version, plugin.load().Dwell.version) == (1, 2)
    assert [path.name for path in plugin.files()] == ["streamfold_dwell.py"]
