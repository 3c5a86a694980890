"""``deepfm`` in torch, its slopes by autograd and its steps by torch's own AdaGrad; and where vectors start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from streamfold.core import Example
from streamfold.plugins._codes import code

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
    """The default configuration. Rows by tag: a weight and a vector, each with an optimiser's state of its own.

    ``told``: what the texts of items say, by item.
    """

    factors, hidden, content, pull, spread = 8, 32, 64, 0.01, 0.1
    linear_rate, rate, content_rate = 0.3, 0.06, 0.02

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        self.told = told or {}
        n, h = 5 * self.factors, self.hidden
        self.bias = _parameter(np.zeros(1))
        self.one = torch.nn.Linear(n, h, dtype=torch.float64)
        self.two = torch.nn.Linear(h, h, dtype=torch.float64)
        self.out = torch.nn.Linear(h, 1, bias=False, dtype=torch.float64)
        unit = 0
        with torch.no_grad():
            for layer in (self.one, self.two, self.out):
                for row in layer.weight:
                    fan_in = 4 * self.factors if layer is self.one else len(row)  # as if there were no content
                    row[:] = torch.from_numpy(math.sqrt(6 / fan_in) * drawn(mixed64(unit, 7), len(row)))
                    unit += 1
                if layer.bias is not None:
                    layer.bias.zero_()
        self.deep = [p for layer in (self.one, self.two, self.out) for p in layer.parameters()]
        starts = [self.spread * drawn(mixed64(f, 8), self.content) for f in range(self.factors)]
        self.map, self.of_content = _parameter(np.stack(starts)), _parameter(np.zeros(self.content))
        self.shared = [self.bias, *self.deep, self.map, self.of_content]
        self.steps = [
            self._adagrad([self.bias], self.linear_rate),
            self._adagrad(self.deep, self.rate),
            self._adagrad([self.map, self.of_content], self.content_rate),
        ]
        self.rows: dict[int, tuple[Any, Any, Any]] = {}

    @staticmethod
    def _adagrad(parameters: list[Any], rate: float) -> torch.optim.Adagrad:
        return torch.optim.Adagrad(parameters, lr=rate, initial_accumulator_value=1.0, eps=0.0)

    def _fields(self, e: Example) -> list[list[int]]:
        return [
            [tag_of(("user", e.user), USER)], [tag_of(("user_token", t), TRAIT) for t in e.user_tokens],
            [tag_of(("item", e.item), ITEM)], [tag_of(("item_token", g), GENRE) for g in e.item_tokens],
        ]  # fmt: skip

    def _logit(self, fields: list[list[Any]], told: Any, weights: dict[int, Any], vectors: dict[int, Any]) -> Any:
        z, means = self.bias + self.of_content @ told, []
        for field in fields:
            if field:
                z = z + torch.stack([weights[tag] for tag in field]).mean()
                means.append(torch.stack([vectors[tag] for tag in field]).mean(0))
            else:
                means.append(torch.zeros(self.factors, dtype=torch.float64))
        means.append(self.map @ told)
        for a in range(5):
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
        told = torch.tensor(self.told.get(e.item, np.zeros(self.content)), dtype=torch.float64)
        return self._logit(fields, told, weights, vectors), weights, vectors

    def score(self, e: Example) -> float:
        return float(torch.sigmoid(self._forward(e)[0]).detach())

    def learn(self, e: Example) -> None:
        z, weights, vectors = self._forward(e)
        label = torch.full((1,), e.label, dtype=torch.float64)
        loss = binary_cross_entropy_with_logits(z, label)
        if e.swaps:
            loss = loss - binary_cross_entropy_with_logits(z, 1 - label)
        slopes = torch.autograd.grad(loss, [*self.shared, *weights.values(), *vectors.values()])
        for parameter, slope in zip(self.shared, slopes, strict=False):
            parameter.grad = slope
        if e.item in self.told:
            for parameter in (self.map, self.of_content):
                parameter.grad = parameter.grad + self.pull * parameter.detach()
        first = len(self.shared)
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
        n, h = 5 * self.factors, self.hidden
        found = np.zeros((2, 2 * h + 1, 1 + max(n, h)))
        for kind in range(2):
            found[kind, :h, :n], found[kind, :h, -1] = (self._of(p, kind) for p in (self.one.weight, self.one.bias))
            found[kind, h : 2 * h, :h] = self._of(self.two.weight, kind)
            found[kind, h : 2 * h, -1] = self._of(self.two.bias, kind)
            found[kind, 2 * h, :h] = self._of(self.out.weight, kind)[0]
        return found[0], found[1]

    def contents(self) -> tuple[Any, Any]:
        """As ``content`` holds them: a row for each number of the content's vector, then the weights."""
        found = [np.vstack([self._of(self.map, kind), self._of(self.of_content, kind)]) for kind in range(2)]
        return found[0], found[1]

    def _of(self, parameter: Any, kind: int) -> Any:
        """A parameter's values, or its sums of squared slopes."""
        if not kind:
            return parameter.detach().numpy()
        [state] = [step.state[parameter] for step in self.steps if parameter in step.state]
        return state["sum"].numpy() - 1.0


def _parameter(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)
