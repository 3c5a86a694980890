"""``gradient_head``: replay and steps that depend on the events alone, variants by what characterises them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, ConfigError, EventError, NeedsRebuild, Target, WrongTarget
from streamfold.core.testing import parametrize_with_checks
from streamfold.core.testing.lab import Case
from streamfold.plugins import _alignment, _averages, _gradient, builtin
from streamfold.plugins._gradient import Anchor, Batch, Learner, Sgd, ShrinkPerturb, State, Upgd
from streamfold.plugins._gradient_server import GradientServer
from streamfold.plugins._replay import admitted, held_out
from streamfold.plugins.gradient_head import GradientHead, GradientHeadConfig

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"loss": "softmax"},
    {"expansion": 512},
    {"optimiser": "upgd"},
    {"anchor": 0.01},
    {"shrink": 0.999, "perturb": 0.001},
    {"read_out": "herding"},
    {"align": "norm", "new_for": 4},
    {"align": "bias", "new_for": 4},
    {"align": "gaussian"},
    {"align": "translation", "new_for": 4},
    {"average": "ema", "every": 2, "decay": 0.5},
    {"average": "swa", "every": 2},
    {"average": "lawa", "every": 1, "keep": 3},
    {"average": "lawa", "every": 2, "keep": 1, "blend": 0.5},
    {"average": "stock", "every": 1, "keep": 3},
]


class Stream:
    """Makes events with increasing positions."""

    def __init__(self, bench: Any, make_event: Any, **config: Any) -> None:
        small = {"max_classes": 32, "dim": 256}
        self.bench = bench(GradientHead(GradientHeadConfig(**(small | config))))
        self._make, self._seq = make_event, itertools.count(1)

    def event(self, type_: str, **data: Any) -> Any:
        return self._make(next(self._seq), type_, **data)

    def label(self, label: Any, head: str = "mail", weight: float | None = None, **target: Any) -> Any:
        return self.event("label.observed", head=head, target=target, label=label, weight=weight)

    def send(self, *events: Any) -> None:
        self.bench.send(*events)

    def mail(self) -> list[Any]:
        pairs = [pair for both in zip(SPAM, HAM, strict=True) for pair in zip(both, ("spam", "ham"), strict=True)]
        return [self.label(label, text=text) for text, label in pairs]

    def ask(self, head: str = "mail", top_k: int = 5, explain: bool = False, **target: Any) -> Any:
        request = ClassifyRequest(head=head, targets=[Target(**target)], top_k=top_k, explain=explain)
        return self.bench.server.classify(request)[0]

    def best(self, **target: Any) -> str:
        return str(self.ask(**target).labels[0].label)

    def weights(self, label: str, head: str = "mail", space: str = "text") -> Any:
        slot = self.bench.view["states"].get(f"{head}\0{space}\0{label}").slot
        return self.bench.view["weights"].get([slot])[0]

    def replayed(self) -> dict[str, Any]:
        return {key: one.replay for key, one in self.bench.view["states"].items()}


@pytest.fixture
def stream(bench: Any, make_event: Any) -> Any:
    return lambda **config: Stream(bench, make_event, **config)


def blobs(n: int, seed: int = 0, classes: int = 3) -> list[tuple[str, dict[str, float]]]:
    """Labelled points around one centre per class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, 8)) * 2
    codes = rng.integers(0, classes, n)
    rows = centres[codes] + rng.normal(size=(n, 8))
    return [(f"c{code}", {f"x{i}": float(v) for i, v in enumerate(row)}) for code, row in zip(codes, rows, strict=True)]


# -- the policy --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", VARIANTS)
def test_labels_folded_a_moment_ago_classify(stream: Any, config: dict[str, Any]) -> None:
    mail = stream(**config)
    mail.send(*mail.mail())
    found = mail.ask(text="cheap pills, win money", explain=True)
    assert found.labels[0].label == "spam"
    assert sum(one.score for one in found.labels) == pytest.approx(1, abs=1e-5)
    assert found.explain["read_out"] == config.get("read_out", "linear")
    assert mail.best(text="monday's meeting and review") == "ham"
    mail.send(*[mail.label("travel", text=text) for text in ("a train to paris", "the train ticket to paris")])
    assert mail.best(text="a ticket for the train to paris") == "travel"
    assert mail.ask(text="zyzzyva quokka").unknown > mail.ask(text=SPAM[1]).unknown


@pytest.mark.parametrize("config", VARIANTS)
def test_the_size_of_a_transaction_and_torchs_threads_change_no_bit(stream: Any, config: dict[str, Any]) -> None:
    import torch

    one, other = stream(**config), stream(**config)
    rows = blobs(60)
    before = torch.get_num_threads()
    one.send(*[one.label(label, features=features) for label, features in rows])
    try:
        torch.set_num_threads(before + 1)
        for label, features in rows:
            other.send(other.label(label, features=features))
        assert torch.get_num_threads() == before + 1, "a step leaves the setting of the thread as it was"
    finally:
        torch.set_num_threads(before)
    assert one.bench.fingerprint() == other.bench.fingerprint()
    asked = {"features": rows[0][1]}
    assert one.ask(**asked) == other.ask(**asked)


def test_a_later_label_replaces_null_retracts_and_an_empty_class_disappears(stream: Any) -> None:
    mail = stream()
    mail.send(mail.label("x", text="lamp"), mail.label("y", text="desk"), mail.label("z", text="chair"))
    mail.send(mail.label("y", text="lamp"), mail.label(None, text="chair"), mail.label(None, text="never labelled"))
    assert {one.label for one in mail.ask(text="lamp").labels} == {"y"}
    assert mail.bench.server.heads() == {"mail": 2}
    assert set(mail.replayed()) == {"mail\0text\0y"}
    assert len(mail.replayed()["mail\0text\0y"]) == len(mail.bench.view["phi"]) == 2
    mail.send(mail.label(None, text="desk"), mail.label(None, text="lamp"))
    assert mail.bench.server.heads() == {}
    assert not mail.bench.view["weights"].values.any()
    assert not any(len(mail.bench.view[name]) for name in ("states", "places", "spaces", "phi", "labels", "heads"))
    with pytest.raises(WrongTarget, match="no labels"):
        mail.ask(text="lamp")
    mail.send(mail.label("w", text="lamp"))  # and its row of weights is used again
    assert mail.best(text="lamp") == "w"


def test_an_answer_is_of_the_weights_as_they_are_also_when_the_labels_are_those_of_before(stream: Any) -> None:
    asked, fresh = stream(), stream()
    for one in (asked, fresh):
        one.send(*one.mail())
    asked.ask(text="cheap")
    for one in (asked, fresh):
        one.send(one.label("ham", text="cheap money"))
        one.send(one.label(None, text="cheap money"))
    assert asked.ask(text="cheap") == fresh.ask(text="cheap")


def test_a_label_of_more_weight_moves_more_one_of_none_nothing(stream: Any) -> None:
    def after(weight: float) -> float:
        mail = stream(replay=0, loss="softmax")
        mail.send(mail.label("a", text="lamp"), mail.label("b", text="desk", weight=weight))
        return float(np.abs(mail.bench.view["weights"].values).sum())

    assert after(0.0) < after(0.5) < after(2.0) < after(4.0) == after(1e6)


def test_a_named_class_has_a_prior_before_its_first_label(stream: Any) -> None:
    mail = stream()
    classes = {"a": "trains and tickets", "b": "invoices and payments", "c": None}
    mail.send(*[mail.event("class.upserted", head="mail", name=name, **{"class": c}) for c, name in classes.items()])
    found = mail.ask(text="a ticket for the train")
    assert (found.labels[0].label, found.labels[0].name) == ("a", "trains and tickets")
    assert {one.label for one in found.labels} == {"a", "b"}
    assert mail.bench.server.heads() == {"mail": 2}
    mail.send(*[mail.label("b", text=f"a ticket for the train {n}") for n in range(6)])
    assert mail.best(text="a ticket for the train") == "b"
    mail.send(mail.event("class.upserted", head="mail", **{"class": "a"}))  # without a name it has no evidence
    assert {one.label for one in mail.ask(text="a ticket").labels} == {"b"}
    mail.send(mail.event("class.upserted", head="mail", name="an invoice", **{"class": "a"}))
    assert {one.label for one in mail.ask(text="a ticket").labels} == {"a", "b"}


def test_merged_classes_are_read_as_one_and_retired_ones_are_left_out(stream: Any) -> None:
    mail = stream()
    mail.send(*mail.mail(), mail.label("junk", text="free pills, free money"))
    before = {one.label: one.score for one in mail.ask(text="free pills").labels}
    weights = mail.bench.view["weights"].fingerprint()
    mail.send(mail.event("class.merged", head="mail", into="spam", **{"class": "junk"}))
    merged = {one.label: one.score for one in mail.ask(text="free pills").labels}
    assert set(merged) == {"spam", "ham"}
    assert merged["spam"] > max(before["spam"], before["junk"])
    mail.send(mail.event("class.retired", head="mail", **{"class": "spam"}))
    assert {one.label for one in mail.ask(text="free pills").labels} == {"ham"}
    assert mail.bench.view["weights"].fingerprint() == weights


def test_features_of_other_names_have_weights_of_their_own(stream: Any) -> None:
    mail = stream(dim=4)
    mail.send(mail.label("a", features={"x": 1.0, "y": 2.0}), mail.label("b", features={"x": 2.0, "y": -1.0}))
    mail.send(mail.label("c", features={"x": 1.0, "z": 1.0}))
    assert {one.label for one in mail.ask(features={"x": 1.0, "y": 2.0}).labels} == {"a", "b"}
    with pytest.raises(WrongTarget, match="no labels of 1 features"):
        mail.ask(features={"x": 1.0})
    with pytest.raises(EventError, match=r"has 256 values: the head takes 4") as refused:
        mail.send(mail.label("a", text="lamp"))
    assert refused.value.code == "wrong-dimension"


def test_who_was_labelled_is_forgotten_by_a_rebuild_who_was_not_exactly(stream: Any) -> None:
    mail = stream()
    events = [mail.event("document.upserted", document_id=f"d{n}", text=(SPAM + HAM)[n]) for n in range(4)]
    labels = [mail.label("spam", document_id="d0"), mail.label("ham", document_id="d1")]
    mail.send(*events, *labels)
    held = mail.bench.fingerprint()
    with pytest.raises(NeedsRebuild, match="learned afresh"):
        mail.bench.forget("document", "d0", events[0], labels[0])
    assert mail.bench.fingerprint() == held
    mail.bench.forget("document", "d3", events[3])
    assert "document:d3" not in mail.bench.view["things"]


def test_at_a_bound_labels_are_refused_loudly(stream: Any) -> None:
    mail = stream(max_classes=2)
    mail.send(mail.label("a", text="one"), mail.label("b", text="two"))
    held = mail.bench.fingerprint()
    for event in (
        mail.label("c", text="three"),
        mail.label("a", features={"x": 1.0}),  # a class of another space has a row of weights of its own
        mail.event("class.upserted", head="mail", **{"class": "c"}, name="a third one"),
    ):
        with pytest.raises(
            EventError, match=r"hold 2 classes, and there is room for 2: .*raise max_classes"
        ) as refused:
            mail.send(event)
        assert refused.value.code == "too-many-classes"
    mail.bench.commit()
    assert mail.bench.fingerprint() == held
    mail.send(mail.label("c", text="one"), mail.label("c", features={"x": 1.0}, weight=0.0))
    assert {label for label, _, _ in mail.ask(text="one").labels} == {"b", "c"}


@pytest.mark.parametrize(
    "bad",
    [
        {"loss": "hinge"},
        {"rate": 0.0},
        {"shrink": 1.5},
        {"read_out": "herding", "replay": 0},
        {"align": "x"},
        {"align": "translation", "replay": 0},
        {"anchor": 0.6},
    ],
)
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gradient_head"):
        GradientHeadConfig(**bad)


def test_torch_is_imported_by_the_first_step_only() -> None:
    code = (
        "import sys; from streamfold.plugins import builtin; from streamfold.plugins.gradient_head import GradientHead;"
        "GradientHead(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def every_extra() -> GradientHead:
    """A small head with everything that has a store of its own."""
    how: dict[str, Any] = {"optimiser": "upgd", "anchor": 0.01, "perturb": 0.01, "average": "ema", "every": 2}
    return GradientHead(GradientHeadConfig(max_classes=512, dim=64, replay=8, replayed=8, **how))


QUICK = {"encoder": {"use": "hashing", "dim": 64}}


@parametrize_with_checks([Case(make=every_extra, plugins=(builtin,), backends=QUICK)])
def test_a_head_with_every_extra_passes_the_conformance_kit(check: Callable[[], None]) -> None:
    check()


# -- replay (arXiv:1902.10486) -----------------------------------------------------------------------------------------
def test_the_replay_is_a_function_of_the_set_of_labels_balanced_and_without_what_was_retracted(stream: Any) -> None:
    one, other = stream(replay=5), stream(replay=5)
    events = [one.label(label, features=features) for label, features in blobs(80)]
    shuffled = [events[i] for i in np.random.default_rng(1).permutation(len(events))]
    one.send(*events)
    other.send(*shuffled)
    assert {len(kept) for kept in one.replayed().values()} == {5}
    assert one.replayed() == other.replayed()
    assert set(dict(one.bench.view["phi"].items())) == {key for kept in one.replayed().values() for _, key in kept}
    gone = next(iter(one.replayed().values()))[0][1]
    features = next(e.data.target.features for e in events if f"mail\0{e.subject.kind}:{e.subject.id}" == gone)
    one.send(one.label(None, features=features))
    assert gone not in one.bench.view["phi"]
    assert sorted(len(kept) for kept in one.replayed().values()) == [4, 5, 5]


@given(st.permutations(range(30)), st.integers(1, 12))
def test_the_smallest_hashes_stay_whatever_the_order(order: list[int], most: int) -> None:
    kept: tuple[tuple[int, str], ...] = ()
    for number in order:
        kept, _ = admitted(kept, (number * 7919 % 101, str(number)), most)
    assert list(kept) == sorted((number * 7919 % 101, str(number)) for number in range(30))[:most]


def test_replay_keeps_classes_that_are_not_met_any_more(stream: Any) -> None:
    """Classes one after the other: without replay the last one takes it all."""
    rows = sorted(blobs(150), key=lambda row: row[0])
    right = {}
    for replay in (0, 10):
        head = stream(replay=replay, loss="softmax")
        head.send(*[head.label(label, features=features) for label, features in rows])
        asked = blobs(60, seed=5)
        right[replay] = sum(head.best(features=features) == label for label, features in asked) / len(asked)
    assert right[10] > 0.85
    assert right[10] > right[0] + 0.2


# -- losses, optimisers, hooks -----------------------------------------------------------------------------------------
def test_a_batch_local_loss_leaves_absent_classes_alone_to_the_bit(stream: Any) -> None:
    """Energy-based training, arXiv:2011.12216."""
    for loss, same in (("batch", True), ("softmax", False)):
        mail = stream(loss=loss, replayed=1, replay=5)
        mail.send(*[mail.label(f"c{n}", text=text) for n, text in enumerate(SPAM + HAM)])
        before = {f"c{n}": mail.weights(f"c{n}") for n in range(8)}
        mail.send(mail.label("c0", text="something else"))
        still = [label for label, row in before.items() if (row == mail.weights(label)).all()]
        assert (len(still) >= 6) == same


def batch(n: int = 4, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Any, Batch]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype(np.float32)
    weights = rng.normal(size=(classes, width)).astype(np.float32)
    return weights, Batch(x, rng.integers(0, classes, n), np.ones(n, np.float32))


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    weights, rows = batch()
    logits = rows.x.astype(np.float64) @ weights.T.astype(np.float64)
    away = np.exp(logits - logits.max(1, keepdims=True))
    away /= away.sum(1, keepdims=True)
    away[np.arange(len(rows.codes)), rows.codes] -= 1
    assert _gradient.gradient(weights, rows) == pytest.approx(away.T @ rows.x, abs=1e-5)
    state = State(weights.copy())
    Learner(Sgd(0.5)).step(state, rows)
    assert state.weights == pytest.approx(weights - 0.5 * away.T @ rows.x, abs=1e-5)


def test_upgd_protects_the_useful_also_where_all_utilities_are_negative() -> None:
    """arXiv:2404.00781; normalised by max U, as published, the order would be turned around."""
    useful = np.array([[-0.1, -0.5, -2.0]], np.float32)
    assert (np.diff(_gradient.gate(useful)[0]) < 0).all()
    published = 1 / (1 + np.exp(-useful / useful.max()))
    assert (np.diff(published[0]) > 0).all()
    assert _gradient.gate(np.zeros((1, 3), np.float32)).tolist() == [[0.5] * 3]
    state = State(np.ones((1, 3), np.float32), utility=useful.copy(), noise=np.zeros((1, 3), np.float32))
    Upgd(1.0, 0.9, 0.0).step(state, np.full((1, 3), 0.1, np.float32))
    moved = 1 - state.weights[0]
    assert moved[0] < moved[1] < moved[2]
    assert state.utility == pytest.approx(0.9 * useful - 0.1 * 0.1)  # β U + (1 − β)(−g W)


def test_an_anchor_pulls_to_where_a_class_began_and_shrink_and_perturb_to_zero() -> None:
    """arXiv:2308.11958 and arXiv:1910.08475: without a gradient both are geometric."""
    start, began = np.full((1, 4), 2.0, np.float32), np.full((1, 4), 1.0, np.float32)
    nothing = Batch(np.ones((1, 4), np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))  # one class: no loss
    anchored, shrunk = State(start.copy(), anchor=began), State(start.copy(), noise=np.ones((1, 4), np.float32))
    for _ in range(10):
        Learner(Sgd(0.5), (Anchor(0.5, 0.2),)).step(anchored, nothing)
        Learner(Sgd(0.5), (ShrinkPerturb(0.9, 0.0),)).step(shrunk, nothing)
    assert anchored.weights == pytest.approx(1 + 0.9**10, rel=1e-5)
    assert shrunk.weights == pytest.approx(2 * 0.9**10, rel=1e-5)
    Learner(Sgd(0.5), (ShrinkPerturb(1.0, 0.25),)).step(shrunk, nothing)
    assert shrunk.weights == pytest.approx(2 * 0.9**10 + 0.25, rel=1e-5)


def test_a_class_that_begins_at_its_first_label_disturbs_the_others_less(stream: Any) -> None:
    """The stability gap (arXiv:2205.13452), and class-mean initialisation against it (arXiv:2306.01904)."""
    dips = {}
    for init in ("mean", "zero"):
        dips[init] = 0.0
        for seed in range(3):
            head = stream(init=init, loss="softmax")
            rows = blobs(160, seed=seed, classes=6)
            old = [row for row in rows if row[0] < "c4"]
            head.send(*[head.label(label, features=features) for label, features in old])
            before = np.array([head.weights(f"c{n}", space=_space(head)) for n in range(4)])
            head.send(*[head.label(label, features=features) for label, features in rows if label >= "c4"][:2])
            after = np.array([head.weights(f"c{n}", space=_space(head)) for n in range(4)])
            dips[init] += float(np.linalg.norm(after - before))
    assert dips["mean"] < dips["zero"]


def _space(head: Stream) -> str:
    return next(iter(head.replayed())).split("\0")[1]


# -- read-outs ---------------------------------------------------------------------------------------------------------
def test_weight_alignment_equalises_mean_norms_and_is_the_identity_otherwise() -> None:
    """arXiv:1911.07053."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 9))
    new = np.array([False] * 4 + [True] * 2)
    weights[new] *= 5
    aligned = _alignment.align_norms(weights, new)
    lengths = np.linalg.norm(aligned, axis=1)
    assert lengths[new].mean() == pytest.approx(lengths[~new].mean())
    assert (aligned[~new] == weights[~new]).all()
    weights[new] /= 50
    assert _alignment.align_norms(weights, new) is weights  # the factor would be ≥ 1
    for flags in (np.zeros(6, bool), np.ones(6, bool)):
        assert _alignment.align_norms(weights, flags) is weights


def test_bias_correction_finds_the_bias_that_was_put_in() -> None:
    """BiC, arXiv:1905.13049."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 5)) * 2
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    codes = np.array([rng.choice(5, p=row) for row in chances])
    new = np.array([False, False, False, True, True])
    biased = np.where(new, 2 * scores + 3, scores)
    alpha, beta = _alignment.fit_bias(biased, codes, new)
    assert alpha == pytest.approx(1 / 2, abs=0.05)
    assert beta == pytest.approx(-3 / 2, abs=0.15)
    assert _alignment.fit_bias(scores, codes, np.zeros(5, bool)) == (1.0, 0.0)
    right = [(np.where(new, a * biased + b, biased).argmax(1) == codes).mean() for a, b in ((1, 0), (alpha, beta))]
    assert right[1] > right[0] + 0.1


def test_gaussian_alignment_draws_rows_like_the_classs_and_takes_a_bias_away() -> None:
    """SLCA, arXiv:2303.05118."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 3
    drawn = _alignment.draw_like(rows, 100_000, rng)
    assert drawn.mean(0) == pytest.approx(rows.mean(0), abs=0.05)
    assert np.cov(drawn.T) == pytest.approx(np.cov(rows.T), abs=0.15)
    means = np.eye(5, 12) * 2
    codes = np.repeat(np.arange(5), 20)
    x = means[codes] + rng.normal(size=(100, 12)) * 0.4
    x[:, -1] = 1.0
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = means.copy()
    weights[4] *= 5
    weights[4, -1] = 4.0  # the newest class has too much to say
    aligned = _alignment.align_gaussian(weights, x, codes, 0)
    wrong, right = ((x @ w.T).argmax(1) == codes for w in (weights, aligned))
    assert wrong.mean() < 0.6
    assert right.mean() > 0.95
    assert (_alignment.align_gaussian(weights, x, codes, 0) == aligned).all()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_translated_rows_have_exactly_the_old_classs_mean_and_the_new_ones_spread(seed: int, n: int) -> None:
    """FeTrIL, arXiv:2211.13131."""
    rng = np.random.default_rng(seed)
    rows, mean = rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=6) * 10
    moved = _alignment.translated(rows, mean)
    np.testing.assert_allclose(moved.mean(axis=0), mean, rtol=0, atol=1e-12 * np.abs(mean).max())
    np.testing.assert_allclose(moved - moved[0], rows - rows[0], rtol=0, atol=1e-12 * np.abs(mean).max())


def test_classes_of_which_only_the_mean_is_known_are_told_from_new_ones_by_translated_rows() -> None:
    """FeTrIL, arXiv:2211.13131: rows of the most similar new class stand for an old one's."""
    rng = np.random.default_rng(0)
    means = np.array([[2, 0, 0, 1], [0, 2, 0, 1], [2, 0, 1.5, 1], [0, 2, 1.5, 1]], float)
    new = np.array([False, False, True, True])
    spread = np.array([0.1, 0.1, 0.4, 0.0])
    x = np.repeat(means, 50, axis=0) + rng.normal(size=(200, 4)) * spread
    codes = np.repeat(np.arange(4), 50)
    weights = means * np.array([1, 1, 3, 3])[:, None]  # new classes have too much to say
    held = x[100:], codes[100:]  # no rows of old ones
    aligned = _alignment.align_translated(weights, *held, new, means)
    wrong, right = ((x @ w.T).argmax(1)[:100] == codes[:100] for w in (weights, aligned))
    assert wrong.mean() < 0.6
    assert right.mean() > 0.9
    for flags in (np.zeros(4, bool), np.ones(4, bool)):
        assert _alignment.align_translated(weights, *held, flags, means) is weights


def test_a_head_that_translates_keeps_the_mean_of_all_rows_a_class_had(stream: Any) -> None:
    head = stream(align="translation", replay=3)
    rows = blobs(60)
    head.send(*[head.label(label, features=features) for label, features in rows])
    lift, values = head.bench.server._lift, {}
    for label, features in rows:
        values.setdefault(label, []).append([features[f"x{i}"] for i in range(8)])
    for label, of_class in values.items():
        slot = head.bench.view["states"].get(f"mail\0{_space(head)}\0{label}").slot
        total = head.bench.view["totals"].get([slot])[0]
        assert total[-1] == len(of_class)
        assert total[:-1] / total[-1] == pytest.approx(lift(np.array(of_class)).mean(axis=0), abs=1e-6)
    head.send(*[head.label(None, features=features) for _, features in rows])
    assert not head.bench.view["totals"].values.any()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_herded_rows_have_nearly_the_mean_of_all(seed: int) -> None:
    """iCaRL, arXiv:1611.07725: so few rows chosen by chance are farther off."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(60, 6))
    chosen = _alignment.herded(rows, 10)
    assert len(set(chosen)) == 10
    assert _alignment.herded(rows, 5) == chosen[:5]  # a shorter list is a prefix

    def off(some: Any) -> float:
        return float(np.linalg.norm(rows[some].mean(0) - rows.mean(0)))

    by_chance = np.median([off(rng.permutation(60)[:10]) for _ in range(25)])
    assert off(chosen) < by_chance / 2
    means = _alignment.herded_means(rows, np.zeros(60, int), 2, 10)
    assert np.linalg.norm(means, axis=1).tolist() == pytest.approx([1.0, 0.0])


# -- serving weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["ema", "swa", "lawa", "stock", "bcwi"])
def test_an_average_is_the_mean_of_its_checkpoints_of_one_base(stream: Any, kind: str) -> None:
    """EMA (arXiv:1610.02242), SWA (1803.05407), LAWA (2209.14981), model stock (2403.19522), BCWI (2301.10546)."""
    every, keep, decay = 5, 3, 0.8
    how = {"average": "lawa", "keep": 1, "blend": 0.5} if kind == "bcwi" else {"average": kind, "keep": keep}
    head, plain = stream(every=every, decay=decay, **how), stream()
    rows = [*blobs(40), ("late", {f"x{i}": 1.0 for i in range(8)}), *blobs(19, seed=1)]
    kept: dict[str, list[Any]] = {}
    for n, (label, features) in enumerate(rows, 1):
        for one in (head, plain):
            one.send(one.label(label, features=features))
        if n % every == 0:
            for key in plain.replayed():
                kept.setdefault(key, []).append(plain.weights(key.split("\0")[2], space=_space(plain)))
    assert head.bench.view["weights"].fingerprint() == plain.bench.view["weights"].fingerprint()
    states = dict(head.bench.view["states"].items())
    served = dict(zip(states, head.bench.server.weights("", states, len(rows)), strict=True))
    live = {key: plain.weights(key.split("\0")[2], space=_space(plain)) for key in states}
    for key, points in kept.items():
        if kind == "swa":
            wanted = np.mean(points, axis=0)
        elif kind == "lawa":
            wanted = np.mean(points[-keep:], axis=0)
        elif kind == "stock":
            wanted = _averages.model_stock(points[0], np.stack(points[1:][-keep:], dtype=np.float64))
        elif kind == "bcwi":
            wanted = (points[-1] + live[key]) / 2
        else:
            wanted = points[0]
            for point in points[1:]:
                wanted = decay * wanted + (1 - decay) * point
        assert served[key] == pytest.approx(wanted, abs=1e-6)
    assert len(kept[next(key for key in kept if key.endswith("late"))]) == 4
    head.send(head.label(None, features=rows[40][1]), head.label("w", features={f"x{i}": 2.0 for i in range(8)}))
    late = {key: one for key, one in head.bench.view["states"].items() if key.endswith("\0w")}
    after = head.bench.server.weights("", late, len(rows) + 1)[0]
    assert after == pytest.approx(head.weights("w", space=_space(head)))  # nothing is left of whose row it was


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_a_model_stock_is_the_nearest_point_to_the_centre_of_the_shell(seed: int, k: int) -> None:
    """arXiv:2403.19522: where fine-tuned weights lie around a centre at right angles, by the ratio of their angle."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    centre, far, radius = rng.normal(size=12), rng.uniform(0.5, 5), rng.uniform(0.1, 5)
    anchor, points = centre + far * axes[0], centre + radius * axes[1 : k + 1]
    away = points - anchor
    cosine = away[0] @ away[1] / np.linalg.norm(away[0]) ** 2
    ratio = k * cosine / ((k - 1) * cosine + 1)
    found = _averages.model_stock(anchor, points)
    np.testing.assert_allclose(found, ratio * points.mean(axis=0) + (1 - ratio) * anchor, atol=1e-9)
    plane = away.T
    nearest = anchor + plane @ np.linalg.lstsq(plane, centre - anchor, rcond=None)[0]
    np.testing.assert_allclose(found, nearest, atol=1e-8)


def test_a_model_stock_goes_nowhere_without_agreement_and_all_the_way_with_it() -> None:
    anchor, step = np.ones(3), np.array([1.0, 2.0, 0.0])
    assert _averages.model_stock(anchor, np.stack([anchor + step, anchor - step])).tolist() == anchor.tolist()
    assert _averages.model_stock(anchor, np.stack([anchor, anchor])).tolist() == anchor.tolist()
    same = np.stack([anchor + step, anchor + 3 * step])
    assert _averages.model_stock(anchor, same) == pytest.approx(anchor + 2 * step)
    assert _averages.model_stock(anchor, same[:1]) == pytest.approx(same[0])


def test_a_fifth_of_the_rows_calibrates_and_is_never_replayed() -> None:
    assert sum(held_out(n) for n in range(1000)) == 200
    assert not held_out(0)  # a class's name


class Meeting(GradientServer):
    """Is read when another head is being read too."""

    both = threading.Barrier(2)

    def _head(self, name: str, space: str) -> Any:
        self.both.wait(60)  # it breaks, and both fail, if one waits for the other
        return super()._head(name, space)


def test_heads_are_read_side_by_side(stream: Any) -> None:
    one, heads = stream(), ("mail", "post")
    for head in heads:
        one.send(*[one.label(label, head=head, text=label) for label in ("spam", "ham")])
    server = Meeting(one.bench.policy.config, one.bench.view)

    requests = [ClassifyRequest(head=head, targets=[Target(text="spam")]) for head in heads]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(server.classify, requests)) == list(map(one.bench.server.classify, requests))
