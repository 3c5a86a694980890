"""Heads on labels that are over: what is asked when, what is right, the table, the report and the plot."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from streamfold.core.settings import Settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.evaluate import NothingToTest, Options, Source, evaluate

Given = tuple[str, int, Mapping[str, Any]]
Make = Callable[[Iterable[Given]], Source]
Run = Callable[..., tuple[int, str, str]]
CONFIG = """
[backends.encoder]
use = "hashing"
dim = 64
[policies.label_statistics]
[policies.lda]
use = "label_statistics"
read_out = "lda"
[policies.quick]
use = "gradient_head"
dim = 64
[policies.slow]
use = "gradient_head"
dim = 64
rate = 0.05
[policies.head_ensemble]
members = ["slow", "quick"]
"""
TABLES: dict[str, dict[str, Any]] = {
    "label_statistics": {},
    "lda": {"use": "label_statistics", "read_out": "lda"},
    "quick": {"use": "gradient_head", "dim": 64},
    "slow": {"use": "gradient_head", "dim": 64, "rate": 0.05},
    "head_ensemble": {"members": ["slow", "quick"]},
}


@pytest.fixture
def heads(tmp_path: Path) -> Settings:
    backends = {"encoder": {"use": "hashing", "dim": 64}}
    return Settings.model_validate({"data": tmp_path / "data", "backends": backends, "policies": TABLES})


def label(at_s: int, target: Mapping[str, Any], given: str | float | None, head: str = "h", **more: Any) -> Given:
    return "label.observed", at_s, {"head": head, "target": target, "label": given, **more}


def point(rng: np.random.Generator, code: int) -> dict[str, Any]:
    x, y = rng.normal(size=2) + 4.0 * np.array([(0, 0), (1, 0), (0, 1)][code])
    return {"features": {"x": float(x), "y": float(y), "one": 1.0}}


@pytest.fixture
def points() -> list[Given]:
    """Points of three classes; the third appears late."""
    rng = np.random.default_rng(3)
    codes = [int(rng.integers(3 if i > 100 else 2)) for i in range(200)]
    return [label(60 * n, point(rng, code), "abc"[code]) for n, code in enumerate(codes)]


@pytest.fixture
def digits() -> list[Given]:
    """The digits inside scikit-learn, in a random order, as features; a label a minute."""
    x, y = load_digits(return_X_y=True)
    found = []
    for n, i in enumerate(np.random.default_rng(0).permutation(len(x)).tolist()):
        features = {f"p{j:02d}": float(value) / 16 for j, value in enumerate(x[i])}
        found.append(label(60 * n, {"features": features}, int(y[i]), "digit"))
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``evaluate`` in a folder of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("STREAMFOLD_URL", "STREAMFOLD_CONFIG", "STREAMFOLD_WORKSPACE", "STREAMFOLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("streamfold.toml").write_text(CONFIG)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["evaluate", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def _report(settings: Settings, source: Source, *policies: str, **options: Any) -> dict[str, Any]:
    return evaluate(settings, source, Options(policies=policies, **{"draws": 0, **options}))


def _method(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in body["methods"] if one["name"] == name)


def test_digits_are_told_apart_as_well_as_they_are(heads: Settings, source: Make, digits: list[Given]) -> None:
    body = _report(heads, source(digits), "label_statistics", "lda", draws=50)
    assert (body["task"], body["events"], body["tested"], body["classes"]) == ("classify", 1797, 1618, 10)
    ridge, lda = _method(body, "label_statistics"), _method(body, "lda")
    assert ridge["accuracy"] > 0.91
    assert lda["accuracy"] > 0.935
    assert _method(body, "class shares")["accuracy"] < 0.15
    for one in (ridge, lda):
        low, high = one["intervals"]["accuracy"]
        assert low < one["accuracy"] < high
        assert 0 < one["min_accuracy"] < one["balanced_accuracy"]
        assert 0 <= one["forgetting"] < 0.1
        assert 0 < one["calibration_error"] < 0.05
        assert sum(part["events"] for part in one["over_time"]) == sum(part["events"] for part in one["slices"]) == 1618
        assert one["cost"]["state_bytes"] > 1797 * 64 * 8
    [paired] = [
        d for d in body["differences"] if (d["of"], d["to"], d["measure"]) == ("lda", ridge["name"], "accuracy")
    ]
    assert paired["difference"] == pytest.approx(lda["accuracy"] - ridge["accuracy"], abs=2e-6)
    assert 0 < paired["low"] < paired["difference"] < paired["high"]


def test_each_label_is_asked_by_those_before_its_block(heads: Settings, source: Make, points: list[Given]) -> None:
    """Of the prototype over two classes it can be worked out by hand."""
    tables = {"means": {"use": "label_statistics", "read_out": "prototype"}}
    settings = heads.model_copy(update={"policies": tables})
    body = _report(settings, source(points), "means", block=10, warm_up=0.5, baselines=False)
    vectors = np.array([list(given["target"]["features"].values()) for _, _, given in points])
    vectors = vectors[:, [2, 0, 1]]  # in order of the names; distances do not mind
    labels = np.array([given["label"] for _, _, given in points])
    right = []
    for n in range(100, 200):
        upto = 16 + (n - 16) // 10 * 10  # blocks of 1, 1, 2, 4, 8, 10, 10, …
        means = {name: vectors[:upto][labels[:upto] == name].mean(axis=0) for name in set(labels[:upto].tolist())}
        right.append(min(means, key=lambda name: float(((vectors[n] - means[name]) ** 2).sum())) == labels[n])
    assert _method(body, "means")["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    assert _method(body, "means")["cost"]["blocks"] == 11


def test_a_target_is_tested_once_by_the_last_word_on_it(heads: Settings, source: Make, points: list[Given]) -> None:
    """Labels that are replaced, retracted, merged or retired in the end."""
    expected = _report(heads, source(points), "lda")
    assert expected["tested"] == 180

    def target(n: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = points[n][2]["target"]
        return found

    end = 60 * len(points)
    late = [label(end, target(190), None), label(end + 1, target(191), "b"), label(end + 2, target(192), "a", weight=0)]
    body = _report(heads, source([*points, *late]), "lda", warm_up=0.0)
    whole = _report(heads, source(points), "lda", warm_up=0.0)
    assert body["labels"] == whole["labels"] - 2
    assert body["events"] == whole["events"] + 3
    merged = ("class.merged", end, {"head": "h", "class": "c", "into": "b"})
    body = _report(heads, source([*points, merged]), "lda")
    assert [one["slice"] for one in body["methods"][0]["slices"]] == ["h: a", "h: b"]
    assert body["methods"][0]["accuracy"] > expected["methods"][0]["accuracy"]  # b instead of c is no mistake any more
    retired = ("class.retired", end, {"head": "h", "class": "c"})
    body = _report(heads, source([*points, retired]), "lda")
    assert {one["slice"] for one in body["methods"][0]["slices"]} == {"h: a", "h: b"}
    assert body["labels"] < whole["labels"]


def test_a_document_is_known_before_its_label_is_asked_about(heads: Settings, source: Make) -> None:
    words = {"a": "lens camera shutter focus", "b": "flour butter oven sugar"}
    given: list[Given] = []
    for n in range(60):
        name = "ab"[n % 2]
        said = {"document_id": f"d{n}", "text": f"{words[name]} {n}"}
        given += [("document.upserted", 2 * n, said), label(2 * n + 1, {"document_id": f"d{n}"}, name)]
    body = _report(heads, source(given), "label_statistics", warm_up=0.0)
    assert (body["unanswered"], body["tested"]) == (1, 59)  # the first: by nothing
    assert _method(body, "label_statistics")["accuracy"] > 0.9
    assert _method(body, "label_statistics")["cost"]["blocks"] == 59  # each ends before the label of what it wrote


def test_an_ensemble_costs_what_its_members_cost(heads: Settings, source: Make, points: list[Given]) -> None:
    body = _report(heads, source(points), "head_ensemble", "slow", "quick", block=20)
    both, slow, quick = (_method(body, name) for name in ("head_ensemble", "slow", "quick"))
    assert both["cost"]["state_bytes"] > slow["cost"]["state_bytes"] + quick["cost"]["state_bytes"]
    assert both["logloss"] < max(slow["logloss"], quick["logloss"])
    assert slow["cost"]["blocks"] == 10  # 16…35, 36…: a warm-up of 20 labels is asked about never


def test_a_head_that_forgets_is_seen_to(heads: Settings, source: Make) -> None:
    """Labels that change their places: whoever answers as before is wrong about what it was right about."""
    rng = np.random.default_rng(1)
    swapped = [label(n, point(rng, n % 2), "ab"[(n + (n >= 200)) % 2]) for n in range(400)]
    steady = [label(n, point(rng, n % 2), "ab"[n % 2]) for n in range(400)]
    lost, kept = (_method(_report(heads, source(one), "lda"), "lda") for one in (swapped, steady))
    assert kept["forgetting"] < 0.1 < 0.4 < lost["forgetting"]
    assert kept["over_time"][0]["forgetting"] is None


def test_numbers_name_classes_and_heads_are_apart(heads: Settings, source: Make) -> None:
    rng = np.random.default_rng(2)
    given = [label(n, point(rng, n % 2), float(n % 2), "numbers") for n in range(50)]
    given += [
        label(n, {"text": "good bad"[5 * (n % 2) :][:4].strip() + f" {n}"}, "gb"[n % 2], "words") for n in range(50)
    ]
    body = _report(heads, source(given), "lda", warm_up=0.2)
    assert body["heads"] == ["numbers", "words"]
    assert [one["slice"] for one in body["methods"][0]["slices"]] == [
        "numbers: 0",
        "numbers: 1",
        "words: b",
        "words: g",
    ]


def test_nothing_to_test_is_said(heads: Settings, source: Make) -> None:
    view: Given = ("interaction.observed", 0, {"user_id": "ada", "item_id": "a", "action": "view"})
    with pytest.raises(NothingToTest, match=r"no labels \(label.observed\)"):
        _report(heads, source([view]), "lda")
    one = label(0, {"features": {"x": 1.0}}, "a")
    with pytest.raises(NothingToTest, match="its head had no labels"):
        _report(heads, source([one]), "lda", warm_up=0.0)
    with pytest.raises(NothingToTest, match="of 1 labelled targets none is past the warm-up"):
        _report(heads, source([one]), "lda", first=2)
    wrong = [label(n, {"features": {"x": 0.0, f"y{n}": 0.0}}, "a") for n in range(4)]
    with pytest.raises(NothingToTest, match="lda skipped 4 events"):
        _report(heads, source(wrong), "lda", warm_up=0.0)


def test_the_command_prints_tables_json_and_a_plot(
    run: Run, lines: Callable[[Iterable[Given]], list[bytes]], points: list[Given]
) -> None:
    odd = [(type_, at_s, {**data, "label": f"[/{data['label']}]"}) for type_, at_s, data in points]
    Path("labels.jsonl").write_bytes(b"\n".join(lines(odd)))
    arguments = ("--data", "labels.jsonl", "--policies", "label_statistics,quick", "--draws", "20")
    code, out, _ = run(*arguments, "--plot", "heads.svg", "--block", "16")
    assert code == 0
    said = " ".join(out.split())
    for words in (
        "180 of 200 labelled targets tested, 3 classes", "balanced accuracy", "worst class", "forgetting", "labels/s",
        "state, MB", "at most 16 labels", "h: [/c]", "class shares", "last label", "95 % interval",
    ):  # fmt: skip
        assert words in said
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.parse("heads.svg").getroot()
    assert {"accuracy over time", "quick", "last label"} <= {one.text for one in root.iter(f"{svg}text")}
    assert len(list(root.iter(f"{svg}polyline"))) == 4 + 3 + 2
    code, out, err = run(*arguments, "--json", "--quiet")
    body = json.loads(out)
    assert (code, err, body["block"]) == (0, "", 64)
    for one in body["methods"]:
        assert {
            "name", "kind", "events", "accuracy", "balanced_accuracy", "logloss", "min_accuracy", "forgetting",
            "calibration_error", "cost", "intervals", "calibration", "slices", "over_time",
        } == one.keys()  # fmt: skip
    cost = body["methods"][0]["cost"]
    assert cost.keys() == {"labels_per_s", "fold_ms", "ask_ms", "blocks", "state_bytes", "skipped"}
    assert math.isclose(cost["labels_per_s"], 1000 / (cost["fold_ms"] + cost["ask_ms"]), rel_tol=0.05)
    assert body["methods"][2]["cost"] is None
    assert {d["measure"] for d in body["differences"]} == {"accuracy", "balanced_accuracy", "logloss"}


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ("lab_statistics", "did you mean 'label_statistics'"),
        ("label_statistics,ensemble", "'label_statistics' classifies and 'ensemble' does not"),
        ("corrections", "ranks no items"),
        ("label_statistics", "before each of them its head had no labels"),
    ],
)
def test_bad_input_gets_a_clear_error(
    run: Run, lines: Callable[[Iterable[Given]], list[bytes]], policies: str, said: str
) -> None:
    Path("one.jsonl").write_bytes(lines([label(0, {"features": {"x": 1.0}}, "a")])[0])
    code, out, err = run("--data", "one.jsonl", "--policies", policies)
    assert (code, out) == (2, ""), err
    assert said in " ".join(err.split())
    assert "Traceback" not in err
