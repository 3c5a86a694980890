"""``deepfm`` in torch, its slopes by autograd and its steps by torch's own AdaGrad; and where vectors start."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from streamfold.core import Example
from streamfold.plugins._ranking import code

USER, ITEM, TRAIT, GENRE = 1, 2, 3, 4


def mixed64(value: int, role: int) -> int:
    """The finaliser of splitmix64, in whole numbers."""
    most = (1 << 64) - 1
    value ^= (role * 0x9E3779B97F4A7C15) & most
    value = ((value ^ (value >> 32)) * 0xBF58476D1CE4E5B9) & most
    return value ^ (value >> 29)


def drawn(tag: int, n: int) -> Any:
    """Numbers between −1 and 1."""
    return np.array([(mixed64(tag, f) >> 11) / 2.0**52 - 1.0 for f in range(n)])


def tag_of(key: tuple[str, str], role: int) -> int:
    return (mixed64(code(*key), role) >> 12) | 1


def start(key: tuple[str, str], role: int, n: int) -> Any:
    """Where a new vector starts: by its tag."""
    return drawn(tag_of(key, role), n)


class TorchDeepfm:
    """The default configuration. Rows by tag: a weight and a vector, each with an optimiser's state of its own."""

    factors, hidden, linear_rate, rate, pull, spread = 8, 32, 0.3, 0.06, 0.01, 0.1

    def __init__(self) -> None:
        n, h = 4 * self.factors, self.hidden
        self.bias = _parameter(np.zeros(1))
        self.one = torch.nn.Linear(n, h, dtype=torch.float64)
        self.two = torch.nn.Linear(h, h, dtype=torch.float64)
        self.out = torch.nn.Linear(h, 1, bias=False, dtype=torch.float64)
        unit = 0
        with torch.no_grad():
            for layer in (self.one, self.two, self.out):
                for row in layer.weight:
                    row[:] = torch.from_numpy(math.sqrt(6 / len(row)) * drawn(mixed64(unit, 7), len(row)))
                    unit += 1
                if layer.bias is not None:
                    layer.bias.zero_()
        self.deep = [p for layer in (self.one, self.two, self.out) for p in layer.parameters()]
        self.steps = [self._adagrad([self.bias], self.linear_rate), self._adagrad(self.deep, self.rate)]
        self.rows: dict[int, tuple[Any, Any, Any]] = {}

    @staticmethod
    def _adagrad(parameters: list[Any], rate: float) -> torch.optim.Adagrad:
        return torch.optim.Adagrad(parameters, lr=rate, initial_accumulator_value=1.0, eps=0.0)

    def _fields(self, e: Example) -> list[list[int]]:
        return [
            [tag_of(("user", e.user), USER)], [tag_of(("user_token", t), TRAIT) for t in e.user_tokens],
            [tag_of(("item", e.item), ITEM)], [tag_of(("item_token", g), GENRE) for g in e.item_tokens],
        ]  # fmt: skip

    def _logit(self, fields: list[list[Any]], weights: dict[int, Any], vectors: dict[int, Any]) -> Any:
        z, means = self.bias, []
        for field in fields:
            if field:
                z = z + torch.stack([weights[tag] for tag in field]).mean()
                means.append(torch.stack([vectors[tag] for tag in field]).mean(0))
            else:
                means.append(torch.zeros(self.factors, dtype=torch.float64))
        for a in range(4):
            for b in range(a):
                z = z + means[a] @ means[b]
        return z + self.out(relu(self.two(relu(self.one(torch.cat(means))))))

    def _forward(self, e: Example) -> tuple[Any, dict[int, Any], dict[int, Any]]:
        """The log-odds, and the leaves of the graph by tag: what is new stands at zero."""
        fields = self._fields(e)
        weights, vectors = {}, {}
        for tag in (tag for field in fields for tag in field):
            known = self.rows.get(tag)
            weights[tag] = known[0] if known else _parameter(np.zeros(()))
            vectors[tag] = known[1] if known else _parameter(np.zeros(self.factors))
        return self._logit(fields, weights, vectors), weights, vectors

    def score(self, e: Example) -> float:
        return float(torch.sigmoid(self._forward(e)[0]).detach())

    def learn(self, e: Example) -> None:
        z, weights, vectors = self._forward(e)
        label = torch.full((1,), e.label, dtype=torch.float64)
        loss = binary_cross_entropy_with_logits(z, label)
        if e.swaps:
            loss = loss - binary_cross_entropy_with_logits(z, 1 - label)
        slopes = torch.autograd.grad(loss, [self.bias, *self.deep, *weights.values(), *vectors.values()])
        self.bias.grad = slopes[0]
        for parameter, slope in zip(self.deep, slopes[1:], strict=False):
            parameter.grad = slope
        first = 1 + len(self.deep)
        for step in self.steps:
            step.step()
        for n, tag in enumerate(weights):
            if tag not in self.rows:
                weight, vector = _parameter(np.zeros(())), _parameter(self.spread * drawn(tag, self.factors))
                groups = [{"params": [weight], "lr": self.linear_rate}, {"params": [vector]}]
                self.rows[tag] = weight, vector, self._adagrad(groups, self.rate)
            weight, vector, step = self.rows[tag]
            weight.grad = slopes[first + n] + self.pull * weight.detach()
            vector.grad = slopes[first + len(weights) + n] + self.pull * vector.detach()
            step.step()

    def row(self, tag: int) -> tuple[float, Any, float, Any]:
        """A row's weight and vector, and their sums of squared slopes."""
        weight, vector, step = self.rows[tag]
        sums = [step.state[p]["sum"].numpy() - 1.0 for p in (weight, vector)]
        return float(weight.detach()), vector.detach().numpy(), float(sums[0]), sums[1]

    def layers(self) -> tuple[Any, Any]:
        """Weights, and sums of squared slopes, as ``layers`` holds them: a row per unit, its bias last."""
        n, h = 4 * self.factors, self.hidden
        found = np.zeros((2, 2 * h + 1, 1 + max(n, h)))
        for kind in range(2):

            def of(p: Any, kind: int = kind) -> Any:
                return self.steps[1].state[p]["sum"].numpy() - 1.0 if kind else p.detach().numpy()

            found[kind, :h, :n], found[kind, :h, -1] = of(self.one.weight), of(self.one.bias)
            found[kind, h : 2 * h, :h], found[kind, h : 2 * h, -1] = of(self.two.weight), of(self.two.bias)
            found[kind, 2 * h, :h] = of(self.out.weight)[0]
        return found[0], found[1]


def _parameter(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)
