"""The command: files of every kind, its output, its plot, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamfold.pipelines.cli import main

Given = tuple[str, int, dict[str, Any]]
Run = Callable[..., tuple[int, str, str]]
MAP = """
columns = ["user", "item", "stars", "at"]
separator = "::"
type = "interaction.observed"
time = { column = "at", format = "s" }
[data]
user_id = "user"
item_id = "item"
value = { column = "stars", type = "float" }
action = { value = "rating" }
"""
CSV_MAP = MAP[MAP.index("type =") :]
QUICK = ("--sample", "20", "--draws", "20")


@pytest.fixture
def run(tastes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``evaluate`` in a folder of its own; returns exit code, stdout and stderr."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("STREAMFOLD_URL", "STREAMFOLD_CONFIG", "STREAMFOLD_WORKSPACE", "STREAMFOLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("streamfold.toml").write_text('plugins = ["tastes"]\n[policies.activity]\nlike_from = 3\n')

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["evaluate", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def file(run: Run, lines: Callable[[Iterable[Given]], list[bytes]], rated: list[Given]) -> Path:
    path = Path("events.jsonl")
    path.write_bytes(b"\n".join(lines(rated)))
    return path


def rows(rated: list[Given]) -> list[str]:
    start = 1_700_000_000
    return [f"{d['user_id']}::{d['item_id']}::{d['value']:g}::{start + at_s}" for _, at_s, d in rated]


def test_a_file_gives_a_table_and_with_json_the_whole_report(run: Run, file: Path) -> None:
    code, out, _ = run("--data", str(file), "--policies", "item_taste,user_taste", *QUICK)
    assert code == 0
    for word in ("900 of 1,000 examples tested", "item_taste", "user × item mean", "per-user AUC", "new user and item"):
        assert word in out
    code, out, err = run("--data", str(file), "--policies", "item_taste", "--json", "--quiet", *QUICK)
    body = json.loads(out)
    assert (code, err) == (0, "")
    assert body["methods"][0]["name"] == "item_taste"
    assert len(body["methods"]) == 6
    assert {one["measure"] for one in body["differences"]} == {"auc", "user_auc", "logloss", "ndcg_at_10"}
    for one in body["differences"]:
        assert one["low"] <= one["difference"] <= one["high"]
    low, high = body["methods"][0]["intervals"]["auc"]
    assert low < body["methods"][0]["auc"] < high
    _, out, _ = run("--data", str(file), "--policies", "item_taste", "--json", "--no-baselines", *QUICK)
    assert [one["name"] for one in json.loads(out)["methods"]] == ["item_taste"]


def test_rows_of_any_order_and_form_give_the_same_report(run: Run, file: Path, rated: list[Given]) -> None:
    _, expected, _ = run("--data", str(file), "--policies", "item_taste", "--json", *QUICK)
    Path("map.toml").write_text(MAP)
    lines = rows(rated)
    Path("ratings.dat").write_text("\n".join(sorted(lines)) + "\n")
    code, out, _ = run("--data", "ratings.dat", "--map", "map.toml", "--policies", "item_taste", "--json", *QUICK)
    assert code == 0
    assert json.loads(out) == json.loads(expected)
    header, (first, second) = "user,item,stars,at\n", (lines[:400], lines[400:])
    Path("one.csv").write_text(header + "\n".join(first).replace("::", ","))
    Path("two.dat").write_text("\n".join(second))
    Path("csv.toml").write_text(CSV_MAP)
    code, out, _ = run(
        "--data", "two.dat", "--data", "one.csv", "--map", "map.toml", "--map", "csv.toml", "--policies", "item_taste",
        "--json", *QUICK,
    )  # fmt: skip
    assert json.loads(out) == json.loads(expected)


def test_items_without_a_time_stand_where_they_stand_in_the_input(run: Run, file: Path) -> None:
    Path("items.jsonl").write_text("\n".join(json.dumps({"item_id": f"j{n}"}) for n in range(9)))
    arguments = ("--data", "items.jsonl", "--type", "item.upserted", "--type", "", "--data", str(file))
    code, out, _ = run(*arguments, "--policies", "item_taste", "--json", *QUICK)
    assert (code, json.loads(out)["items"]) == (0, 69)


def test_the_plot_is_an_svg_of_every_method(run: Run, file: Path) -> None:
    code, _, err = run("--data", str(file), "--policies", "item_taste", "--plot", "plot.svg", *QUICK)
    assert code == 0
    assert "plot.svg" in err
    root = ET.parse("plot.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in root.iter(f"{svg}text")]
    assert {"AUC over time", "item_taste", "user × item mean", "constant"} <= {*texts}
    lines = list(root.iter(f"{svg}polyline"))
    assert len(lines) == 6 + 4 + 1  # AUC of all, log loss of those that predict, calibration of the policy
    x, y, width, height = (float(part) for part in root.attrib["viewBox"].split())
    for line in lines:
        for point in line.attrib["points"].split():
            px, py = map(float, point.split(","))
            assert x <= px <= width
            assert y <= py <= height


def test_known_ids_count_once_and_bad_lines_are_named(run: Run, file: Path) -> None:
    text = file.read_text().splitlines()
    file.write_text(
        "\n".join([*text, text[0], "{not json", text[1].replace('"rating"', '"fondled"').replace("e1", "z")])
    )
    code, out, err = run("--data", str(file), "--policies", "item_taste", "--json", *QUICK)
    body = json.loads(out)
    assert (code, body["events"], body["duplicates"], body["refused"]) == (3, 1000, 1, 2)
    assert "events.jsonl, line 1002: malformed" in err
    assert "events.jsonl, line 1003: invalid-value /data/action" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--policies", "item_taste"], 2, "either --data FILE or --from"),
        (["--policies", "item_taste", "--data", "events.jsonl", "--from", "1"], 2, "either --data FILE or --from"),
        (["--policies", ",", "--data", "events.jsonl"], 2, "names no policy"),
        (["--data", "events.jsonl"], 2, "--policies"),
        (["--policies", "item_tast", "--data", "events.jsonl"], 2, "did you mean 'item_taste'"),
        (["--policies", "activity", "--data", "events.jsonl"], 2, "ranks no items"),
        (["--policies", "broken_taste", "--data", "stone.jsonl"], 1, "cannot chew"),
        (["--policies", "item_taste", "--data", "none.jsonl"], 2, "none.jsonl: no events"),
        (["--policies", "item_taste", "--data", "absent.jsonl"], 2, "No such file"),
        (["--policies", "item_taste", "--data", "."], 2, "is a folder"),
        (["--policies", "item_taste", "--data", "rows.csv"], 2, "needs --map"),
        (
            ["--policies", "item_taste", "--data", "rows.csv", "--map", "wrong.toml"],
            3,
            "/data/user_id: /data needs user_id",
        ),
        (["--policies", "item_taste", "--data", "rows.csv", "--map", "odd.toml"], 2, "'separator' needs 'columns'"),
        (["--policies", "item_taste", "--data", "rows.csv", "--map", "no.toml"], 2, "no.toml"),
        (["--policies", "item_taste", "--data", "rows.csv", "--map", "a", "--map", "b"], 2, "give one for all"),
        (["--policies", "item_taste", "--data", "views.jsonl"], 2, "liked or disliked"),
        (["--policies", "item_taste", "--data", "events.jsonl", "--plot", "plot.png"], 2, ".svg"),
        (["--policies", "item_taste", "--data", "events.jsonl", "--plot", "no/plot.svg"], 2, "no folder"),
        (["--policies", "item_taste", "--from", "1"], 2, "there is no log"),
        (["--policies", "item_taste", "--data", "events.jsonl", "--warm-up", "1.5"], 2, "warm-up"),
    ],
)
def test_bad_input_gets_a_clear_error(
    run: Run, file: Path, lines: Callable[[Iterable[Given]], list[bytes]], arguments: list[str], code: int, said: str
) -> None:
    view = {"user_id": "ada", "item_id": "a", "action": "view"}
    Path("views.jsonl").write_bytes(b"\n".join(lines([("interaction.observed", 0, view)])))
    stone = {"user_id": "ada", "item_id": "stone", "action": "like"}
    Path("stone.jsonl").write_bytes(b"\n".join(lines([("interaction.observed", 0, stone)])))
    Path("none.jsonl").write_text("\n")
    Path("rows.csv").write_text("user,item,stars,at\nada,a,5,1700000000\n")
    Path("wrong.toml").write_text(CSV_MAP.replace('"user"\n', '"usr"\n'))
    Path("odd.toml").write_text('separator = "::"\ntype = "interaction.observed"\n[data]\nuser_id = "user"\n')
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    assert said in " ".join(err.split())
    assert "Traceback" not in err
