"""The error memories in plain Python, from their formulas: what the compiled loops are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

U64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x &= U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    return x ^ (x >> 31)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# -- mixture ----------------------------------------------------------------------------------------------------------
class Mixture:
    """Bayes over λ with plain weights."""

    def __init__(self, lambdas: Sequence[float], share: float, in_logits: bool) -> None:
        self.lambdas, self.share, self.in_logits = lambdas, share, in_logits
        self.weights = [1 / len(lambdas)] * len(lambdas)

    def experts(self, base: float, correction: float) -> list[float]:
        said = []
        for one in self.lambdas:
            p = base if one == 0 else base + one * correction
            if self.in_logits and one:
                p = sigmoid(logit(min(max(base, 1e-9), 1 - 1e-9)) + one * correction)
            said.append(min(max(p, 1e-4), 1 - 1e-4))
        return said

    def mix(self, base: float, correction: float) -> float:
        if len(self.lambdas) == 1:
            return base
        return sum(w * p for w, p in zip(self.weights, self.experts(base, correction), strict=True))

    def learn(self, base: float, correction: float, label: float) -> None:
        likely = [p if label else 1 - p for p in self.experts(base, correction)]
        made = [w * p for w, p in zip(self.weights, likely, strict=True)]
        total, n = sum(made), len(made)
        self.weights = [(1 - self.share) * one / total + self.share / n for one in made]


# -- table ------------------------------------------------------------------------------------------------------------
class Table:
    """All examples are kept, and the sums made anew at each question: order and decay by definition."""

    def __init__(self, rate: float, prior: float, rows: int) -> None:
        self.rate, self.prior, self.rows = rate, prior, rows
        self.seen: dict[int, list[list[float]]] = {}

    def keys(self, user: int, item: int, tokens: Sequence[int], own: int) -> list[int]:
        def row(one: int, other: int, role: int) -> int:
            return mix(mix(one + role * GOLDEN) + other) % self.rows

        split = len(tokens) - own
        return [
            *(row(user, 0, 1), row(item, 0, 2)),
            *(row(user, token, 3) for token in tokens[:split]),
            *(row(item, token, 3) for token in tokens[split:]),
        ]

    def term(self, key: int, at_s: float) -> float:
        seen = self.seen.get(key, [])
        now = max([at_s, *(at for at, _, _ in seen)])
        weights = [math.exp(-self.rate * (now - at)) for at, _, _ in seen]
        residual = sum(w * r for w, (_, r, _) in zip(weights, seen, strict=True))
        return residual / (sum(w * v for w, (_, _, v) in zip(weights, seen, strict=True)) + self.prior)

    def terms(self, keys: Sequence[int], at_s: float) -> list[float]:
        tokens = [self.term(key, at_s) for key in keys[2:]]
        return [self.term(keys[0], at_s), self.term(keys[1], at_s), sum(tokens) / max(1, len(tokens))]

    def learn(self, keys: Sequence[int], at_s: float, label: float, said: float, swaps: bool) -> None:
        terms, z = self.terms(keys, at_s), logit(said)
        for j, key in enumerate(keys):
            if j in (1, 2):
                z += terms[j - 1]
            p = sigmoid(z)
            row = [at_s, 2 * label - 1, 0.0] if swaps else [at_s, label - p, p * (1 - p)]
            self.seen.setdefault(key, []).append(row)


# -- sketch -----------------------------------------------------------------------------------------------------------
def plane(feature: int, bit: int) -> float:
    x = mix(feature + (bit + 1) * GOLDEN)
    return float(sum((x >> shift) & 0xFFFF for shift in (0, 16, 32, 48))) - 131070.0


def sketch_rows(user: int, item: int, tokens: Sequence[int], arrays: int, bits: int) -> list[int]:
    found = []
    for k in range(arrays):
        bucket = 0
        for bit in range(k * bits, (k + 1) * bits):
            side = plane(item if k % 3 == 1 else user, bit)
            if k % 3 == 2 and tokens:
                side += sum(plane(token, bit) for token in tokens) / math.sqrt(len(tokens))
            bucket = 2 * bucket + (side > 0)
        found.append((k << bits) + bucket)
    return found


class Sketch:
    """Sums over the examples that met in a bucket."""

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.buckets: dict[int, np.ndarray[Any, Any]] = {}

    def terms(self, rows: Sequence[int]) -> list[float]:
        made = []
        for view in range(3):
            sums = [self.buckets.get(row, np.zeros(3)) for row in rows[view::3]]
            made.append(sum(one[1] - one[2] for one in sums) / sum(one[0] + self.prior for one in sums))
        return made

    def learn(self, rows: Sequence[int], label: float, said: float, swaps: bool) -> None:
        for view, term in enumerate(self.terms(rows)):
            for row in rows[view::3]:
                bucket = self.buckets.setdefault(row, np.zeros(3))
                bucket += (0, 2 * label - 1, 0) if swaps else (1, label, said)
            said = min(max(said + term, 0.0), 1.0)


# -- nearest samples --------------------------------------------------------------------------------------------------
class Samples:
    """The newest ``size`` samples as a list, newest last."""

    def __init__(self, size: int, k: int, tau: float, gamma: float) -> None:
        self.size, self.k, self.tau, self.gamma = size, k, tau, gamma
        self.kept: list[Any] = []

    def similarity(self, one: Any, user: int, item: int, tokens: Sequence[int]) -> float:
        mine, other = {mix(token) % 64 for token in tokens}, {mix(token) % 64 for token in one["tokens"]}
        both = len(mine & other)  # in the order in which the loop multiplies: of equal neighbours the newest count
        cosine = 0.2 * (1 / math.sqrt(len(mine))) * both * (1 / math.sqrt(len(other))) if both else 0.0
        return 0.4 * (one["user"] == user) + 0.4 * (one["item"] == item) + cosine

    def correction(self, user: int, item: int, tokens: Sequence[int], base: float) -> float:
        scored = [(self.similarity(one, user, item, tokens), one) for one in self.kept[::-1]]
        best = sorted(scored, key=lambda pair: -pair[0])[: self.k]
        if not best:
            return 0.0
        weights = [one["weight"] * math.exp(s / self.tau) for s, one in best]
        label = sum(w * one["label"] for w, (_, one) in zip(weights, best, strict=True)) / sum(weights)
        said = sum(w * one["said"] for w, (_, one) in zip(weights, best, strict=True)) / sum(weights)
        return (1 - self.gamma) * (label - said) + self.gamma * (label - base)

    def keep(self, **sample: Any) -> None:
        self.kept = [*self.kept, sample][-self.size :]


def heap_of(similarities: Sequence[float], k: int) -> list[tuple[float, int]]:
    """The k greatest as a binary heap by swaps, (similarity, age), of equal ones the oldest first: its order counts."""
    heap: list[tuple[float, int]] = []

    def before(one: int, other: int) -> bool:
        return (heap[one][0], -heap[one][1]) < (heap[other][0], -heap[other][1])

    for age, score in enumerate(similarities):
        if len(heap) < k:
            heap.append((score, age))
            at = len(heap) - 1
            while at and before(at, (at - 1) // 2):
                heap[at], heap[(at - 1) // 2] = heap[(at - 1) // 2], heap[at]
                at = (at - 1) // 2
        elif score > heap[0][0]:
            heap[0], at = (score, age), 0
            while children := [one for one in (2 * at + 1, 2 * at + 2) if one < k]:
                child = children[-1] if before(children[-1], children[0]) else children[0]
                if not before(child, at):
                    break
                heap[at], heap[child] = heap[child], heap[at]
                at = child
    return heap
