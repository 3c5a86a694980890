"""What heads answered to a report: measures, by class and over time, what it cost, and paired differences.

A label that no policy could answer (the first ones of a head, mostly) is left out; one that some could counts as wrong
for the others. A class that was not there yet had no chance, which counts as one of 10⁻⁴ in the log loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamfold.core.events.fields import from_us
from streamfold.pipelines.evaluate.heads import Answers, Cost
from streamfold.pipelines.evaluate.intervals import Draws, differences, interval, number
from streamfold.pipelines.evaluate.labels import LabelSet
from streamfold.pipelines.evaluate.metrics import Calibration, Codes, Flags, Floats, calibration

MEASURES = {"accuracy": False, "balanced_accuracy": False, "logloss": True}
"""With whether low is good."""
PARTS = 10
FEWEST = 5
"""A class with fewer labels, in all or in a part of the time, has no say in how the worst one fared."""
_LEAST = 1e-4


class HeadsReport:
    """Measures of answers; every method on the labels that a policy could answer.

    Parameters
    ----------
    tested : places in ``test.labels``. draws : of the bootstrap, over targets; 0: no intervals.
    """

    def __init__(
        self, test: LabelSet, tested: Sequence[int], answers: Sequence[Answers], *, draws: int, seed: int
    ) -> None:
        chosen = np.array(tested, np.int64)
        policies = [one for one in answers if one.kind == "policy"]
        there = np.zeros(len(chosen), bool)
        for one in policies:
            there |= ~np.isnan(one.chance[chosen])
        self._test, self._asked, self._at = test, len(chosen), chosen[there]
        self._answers = {one.name: one for one in answers}
        labels = [test.labels[index] for index in self._at.tolist()]
        self._targets = _codes([(one.subject.kind, one.subject.id) for one in labels])[0]
        self._classes, self._names = _codes([(one.head, one.truth) for one in labels])
        self._draws = Draws(int(self._targets.max()) + 1 if labels else 0, draws, seed)
        self._count = draws

    def __len__(self) -> int:
        return len(self._at)

    def body(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        names = list(self._answers)
        policies = [name for name in names if self._answers[name].kind == "policy"]
        others = [name for name in names if name not in policies]
        compared = differences(policies, others, MEASURES, self._value, self._drawn) if self._count else []
        return {
            "events": self._test.observed,
            "labels": len(self._test.labels),
            "tested": len(self),
            "unanswered": self._asked - len(self),
            "heads": sorted({head for head, _ in self._names}),
            "classes": len(self._names),
            "methods": [self._method(self._answers[name]) for name in names],
            "differences": compared,
        }

    # -- one method ---------------------------------------------------------------------------------------------------
    def _right(self, name: str) -> Floats:
        return np.nan_to_num(self._answers[name].right[self._at])

    def _losses(self, name: str) -> Floats:
        one = self._answers[name]
        if not one.predicts:
            return np.full(len(self), np.nan)
        losses: Floats = -np.log(np.clip(np.nan_to_num(one.chance[self._at]), _LEAST, 1.0))
        return losses

    def _value(self, name: str, measure: str) -> float:
        if measure == "logloss":
            return float(self._losses(name).mean())
        if measure == "accuracy":
            return float(self._right(name).mean())
        return float(self._by_class(name)[0].mean())

    def _drawn(self, name: str, measure: str) -> Floats:
        if measure == "balanced_accuracy":
            return self._draws.mean_by_class(self._targets, self._classes, self._right(name))
        return self._draws.mean(self._targets, self._losses(name) if measure == "logloss" else self._right(name))

    def _by_class(self, name: str, mask: Flags | None = None) -> tuple[Floats, Floats]:
        """Accuracy (``nan``: no labels) and number of labels of each class."""
        at = slice(None) if mask is None else mask
        counts = np.bincount(self._classes[at], minlength=len(self._names)).astype(np.float64)
        right = np.bincount(self._classes[at], weights=self._right(name)[at], minlength=len(self._names))
        return np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0), counts

    def _method(self, one: Answers) -> dict[str, Any]:
        body: dict[str, Any] = {"name": one.name, "kind": one.kind}
        body["events"] = int(np.count_nonzero(~np.isnan(one.chance[self._at])))
        for measure in MEASURES:
            body[measure] = number(self._value(one.name, measure))
        over_time = self._over_time(one)
        lost = [part["forgetting"] for part in over_time if part["forgetting"] is not None]
        bins = self._calibration(one)
        body["min_accuracy"] = number(_worst(*self._by_class(one.name)))
        body["forgetting"] = number(float(np.mean(lost))) if lost else None
        body["calibration_error"] = number(bins.error)
        body["cost"] = _cost(one.cost)
        if self._count:
            body["intervals"] = {
                measure: interval(self._value(one.name, measure), self._drawn(one.name, measure)).body()
                for measure in MEASURES
            }
        body["calibration"] = [
            {"predicted": number(p), "observed": number(o), "events": int(n)} for p, o, n in zip(*bins, strict=True)
        ]
        accuracies, counts = self._by_class(one.name)
        body["slices"] = [
            {"slice": f"{head}: {label}", "events": int(n), "accuracy": number(a)}
            for (head, label), a, n in zip(self._names, accuracies.tolist(), counts.tolist(), strict=True)
        ]
        body["over_time"] = over_time
        return body

    def _calibration(self, one: Answers, mask: Flags | None = None) -> Calibration:
        """Of the likeliest class: how sure the method was of it, and how often it was right."""
        at = self._at if mask is None else self._at[mask]
        sure, right = one.sure[at], one.right[at]
        there = ~np.isnan(sure) if one.predicts else np.zeros(len(at), bool)
        return calibration(right[there], sure[there])

    def _over_time(self, one: Answers) -> list[dict[str, Any]]:
        """Ten parts of equally many labels; ``forgetting``: below the best that classes had in an earlier part."""
        n, found = len(self), []
        best = np.full(len(self._names), np.nan)
        for part in range(PARTS if n >= PARTS else 0):
            mask = np.zeros(n, bool)
            mask[n * part // PARTS : n * (part + 1) // PARTS] = True
            accuracies, counts = self._by_class(one.name, mask)
            at_us = self._test.labels[self._at[n * part // PARTS]].at_us
            now = np.where(counts >= FEWEST, accuracies, np.nan)
            lost = np.maximum(best - now, 0.0)
            found.append(
                {
                    "at": from_us(at_us).isoformat().replace("+00:00", "Z"),
                    "events": int(mask.sum()),
                    "accuracy": number(float(self._right(one.name)[mask].mean())),
                    "balanced_accuracy": number(float(np.nanmean(accuracies))),
                    "logloss": number(float(self._losses(one.name)[mask].mean())),
                    "min_accuracy": number(_worst(accuracies, counts)),
                    "forgetting": None if np.isnan(lost).all() else number(float(np.nanmean(lost))),
                    "calibration_error": number(self._calibration(one, mask).error),
                }
            )
            best = np.fmax(best, now)
        return found


def _worst(accuracies: Floats, counts: Floats) -> float:
    """The accuracy of the class that fared worst; of all classes, if none has enough labels."""
    enough = counts >= FEWEST
    return float(np.nanmin(accuracies[enough] if enough.any() else accuracies))


def _codes(keys: Sequence[tuple[str, str]]) -> tuple[Codes, list[tuple[str, str]]]:
    """Code keys by their place among the sorted ones."""
    names = sorted(set(keys))
    place = {key: code for code, key in enumerate(names)}
    return np.array([place[key] for key in keys], np.int64), names


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    """Milliseconds of CPU per label, to fold it and to be asked about it, in blocks."""
    if cost is None:
        return None
    fold_ms = 1000 * cost.fold_s / max(cost.folded, 1)
    ask_ms = 1000 * cost.ask_s / max(cost.asked, 1)
    return {
        "labels_per_s": round(1000 / max(fold_ms + ask_ms, 1e-9), 1),
        "fold_ms": number(fold_ms),
        "ask_ms": number(ask_ms),
        "blocks": cost.blocks,
        "state_bytes": cost.state_bytes,
        "skipped": cost.skipped,
    }
