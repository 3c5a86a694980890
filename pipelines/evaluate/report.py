"""Scores to a report: every method's measures, by slice and over time, and the differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from streamfold.core.events.fields import from_us
from streamfold.core.quality import coverage
from streamfold.pipelines.evaluate.examples import Slices, TestSet
from streamfold.pipelines.evaluate.intervals import Draws, Interval, differences, interval, number
from streamfold.pipelines.evaluate.metrics import (
    Codes,
    Flags,
    Floats,
    GroupAuc,
    auc,
    calibration,
    group_auc,
    log_loss,
    log_losses,
    mean_group_auc,
)
from streamfold.pipelines.evaluate.offpolicy import Estimates, estimate
from streamfold.pipelines.evaluate.run import Plan, Scores

MEASURES = ("auc", "user_auc", "logloss", "ndcg_at_10")
SLOTS = 10
EARLY = 5


class Report:
    """Measures of scores on a test set; every method on the events that it scored.

    Parameters
    ----------
    draws : of the bootstrap; 0: no intervals.
    """

    def __init__(
        self, plan: Plan, about: Slices, scores: Sequence[Scores], *, items: int, draws: int, seed: int
    ) -> None:
        self._plan, self._test, self._items = plan, plan.test, items
        self._at = np.flatnonzero(plan.tested)
        self._labels = plan.test.labels[self._at]
        self._about = about.of(self._at)
        _, users = np.unique(self._about.user, return_inverse=True)
        self._users: Codes = users.astype(np.int64)
        self._group = plan.test.group[self._at]
        self._scores = {one.name: one for one in scores}
        self._owner = np.zeros(len(plan.test.groups), np.int64)
        self._owner[self._group] = self._users
        self._draws = Draws(int(self._users.max()) + 1 if len(users) else 0, draws, seed)
        self._count = draws

    def body(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        methods = [self._method(one) for one in self._scores.values()]
        mixed = self._groups(next(iter(self._scores.values()))) if self._scores else None
        there = None if mixed is None else ~np.isnan(mixed.value)
        return {
            "events": len(self._test),
            "tested": len(self._at),
            "positives": number(self._labels.mean()) if len(self._at) else None,
            "users": len(np.unique(self._users)),
            "items": self._items,
            "exposures": self._test.exposures,
            "compared": {
                "groups": 0 if there is None else int(there.sum()),
                "events": 0 if mixed is None or there is None else int(mixed.events[there].sum()),
            },
            "sample": len(self._plan.sample),
            "methods": methods,
            "differences": self._differences(),
            "off_policy": self._off_policy(),
        }

    # -- one method ---------------------------------------------------------------------------------------------------
    def _single(self, one: Scores) -> tuple[Floats, Flags]:
        found = one.single[self._at]
        return found, ~np.isnan(found)

    def _groups(self, one: Scores) -> GroupAuc:
        found = one.together[self._at]
        there = ~np.isnan(found)
        return group_auc(self._group[there], self._labels[there], found[there])

    def _method(self, one: Scores) -> dict[str, Any]:
        scores, there = self._single(one)
        labels, scores = self._labels[there], scores[there]
        bins = calibration(labels, scores) if one.predicts else None
        body: dict[str, Any] = {"name": one.name, "kind": one.kind, "events": int(there.sum())}
        for name in MEASURES:
            body[name] = number(self._value(one, name))
        if self._count:
            body["intervals"] = {name: self._interval(one, name).body() for name in MEASURES}
        body["calibration_error"] = number(bins.error) if bins else None
        sampled = len(self._plan.sample) and one.kind != "served"
        body["coverage"] = number(coverage(len(one.listed), self._items)) if sampled else None
        body["calibration"] = [
            {"predicted": number(p), "observed": number(o), "events": int(n)}
            for p, o, n in (zip(*bins, strict=True) if bins else ())
        ]
        body["slices"] = self._slices(one)
        body["over_time"] = self._over_time(one)
        return body

    def _value(self, one: Scores, name: str) -> float:
        scores, there = self._single(one)
        if name == "user_auc":
            return mean_group_auc(self._groups(one))
        if name == "ndcg_at_10":
            found = one.ndcg[self._at]
            return float(np.nanmean(found)) if not np.isnan(found).all() else math.nan
        if name == "logloss":
            return log_loss(self._labels[there], scores[there]) if one.predicts else math.nan
        return auc(self._labels[there], scores[there])

    def _drawn(self, one: Scores, name: str) -> Floats:
        """The measure in each draw."""
        scores, there = self._single(one)
        users = self._users[there]
        if name == "user_auc":
            return self._draws.group_auc(self._owner, _padded(self._groups(one), len(self._owner)))
        if name == "ndcg_at_10":
            return self._draws.mean(self._users, one.ndcg[self._at])
        if name == "logloss":
            if not one.predicts:
                return np.empty(0)
            return self._draws.mean(users, log_losses(self._labels[there], scores[there]))
        return self._draws.auc(users, self._labels[there], scores[there])

    def _interval(self, one: Scores, name: str) -> Interval:
        value = self._value(one, name)
        return Interval(value, math.nan, math.nan) if math.isnan(value) else interval(value, self._drawn(one, name))

    def _slices(self, one: Scores) -> list[dict[str, Any]]:
        about = self._about
        new_user, new_item = about.user_before == 0, about.item_before == 0
        early_user, early_item = about.user_before < EARLY, about.item_before < EARLY
        named = {
            "new user": new_user, "old user": ~new_user, "new item": new_item, "old item": ~new_item,
            "new user and item": new_user & new_item, f"a user's first {EARLY}": early_user,
            f"an item's first {EARLY}": early_item, f"the first {EARLY} of both": early_user & early_item,
        } | {f"item decile {d + 1}": about.decile == d for d in range(10)}  # fmt: skip
        return [self._part({"slice": name}, one, mask) for name, mask in named.items()]

    def _over_time(self, one: Scores) -> list[dict[str, Any]]:
        """Ten parts of equally many events."""
        n, found = len(self._at), []
        for slot in range(SLOTS if n >= SLOTS else 0):
            mask = np.zeros(n, bool)
            mask[n * slot // SLOTS : n * (slot + 1) // SLOTS] = True
            at = from_us(self._test.examples[self._at[n * slot // SLOTS]].at_us).isoformat().replace("+00:00", "Z")
            found.append(self._part({"at": at}, one, mask))
        return found

    def _part(self, body: dict[str, Any], one: Scores, mask: Flags) -> dict[str, Any]:
        scores, there = self._single(one)
        mask = mask & there
        labels, scores = self._labels[mask], scores[mask]
        body |= {"events": int(mask.sum()), "auc": number(auc(labels, scores))}
        if one.predicts:
            body["logloss"] = number(log_loss(labels, scores))
            body["calibration_error"] = number(calibration(labels, scores).error)
        return body

    # -- differences --------------------------------------------------------------------------------------------------
    def _differences(self) -> list[dict[str, Any]]:
        """Each policy against the best baseline of a measure, and against the first policy."""
        if not self._count:
            return []
        return differences(
            [one.name for one in self._scores.values() if one.kind == "policy"],
            [one.name for one in self._scores.values() if one.kind == "baseline"],
            {measure: measure == "logloss" for measure in MEASURES},
            lambda name, measure: self._value(self._scores[name], measure),
            lambda name, measure: self._drawn(self._scores[name], measure),
        )

    # -- off-policy ---------------------------------------------------------------------------------------------------
    def _off_policy(self) -> list[dict[str, Any]]:
        """What each policy would have earned where propensities were logged; first, what was earned."""
        slots = self._plan.slots
        if not slots:
            return []
        rewards = np.array([slot.reward for slot in slots])
        logged = np.array([slot.exposure.propensities[slot.place] for slot in slots], np.float64)
        names: dict[str, int] = {}
        who = (slot.exposure.user or f"\0{slot.exposure.seq}" for slot in slots)  # an unknown one is nobody else
        users = np.array([names.setdefault(one, len(names)) for one in who])
        if not (logged > 0).all():
            return [{"policy": "as logged", "refused": "a propensity of 0 was logged for something that was shown"}]
        found = [_estimates("as logged", estimate(rewards, logged, logged, clusters=users))]
        for one in self._scores.values():
            if one.kind == "policy":
                made = estimate(
                    rewards, logged, one.chosen, predicted=one.predicted, expected=one.expected, clusters=users
                )
                found.append(_estimates(one.name, made))
        return found


def _padded(found: GroupAuc, size: int) -> GroupAuc:
    short = size - len(found.value)
    return GroupAuc(np.append(found.value, np.full(short, np.nan)), np.append(found.events, np.zeros(short)))


def _estimates(name: str, found: Estimates) -> dict[str, Any]:
    body: dict[str, Any] = {"policy": name}
    for key, value in asdict(found).items():
        if isinstance(value, tuple):
            low, high = Interval(*value).body()
            body[key] = {"value": number(value[0]), "low": low, "high": high}
        else:
            body[key] = number(value) if isinstance(value, float) else value
    return body


def served(test: TestSet) -> Scores | None:
    """The scores that were served, where the stream says them."""
    found = np.array([np.nan if one.served is None else one.served for one in test.examples])
    there = ~np.isnan(found)
    if not there.any():
        return None
    predicts = bool(((found[there] >= 0) & (found[there] <= 1)).all())
    return Scores(
        name="served", kind="served", predicts=predicts, single=found, together=found,
        ndcg=np.full(len(found), np.nan),
    )  # fmt: skip
