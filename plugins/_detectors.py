r"""Detectors of change in a stream of numbers; each is its own state, so it is stored and folded again as it is.

================ =====================================================================================================
`Adwin`          a window that is cut where the means of its two parts differ by more than chance (Bifet and Gavaldà
                 2007, doi:10.1137/1.9781611972771.42), in buckets of exponential size
`PageHinkley`    how far the faded sum of deviations from the mean has come from its least or greatest value (Page 1954,
                 doi:10.1093/biomet/41.1-2.100)
`Cusum`          the one-sided sum of what exceeds the mean of the first values by more than an allowance, in standard
                 deviations; upwards alone
================ =====================================================================================================

`Adwin` and `PageHinkley` fire where river's do. After it fired a detector begins anew.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import msgspec


class Fired(NamedTuple):
    """A change: the statistic, and the threshold that it passed."""

    statistic: float
    threshold: float


def _renew(detector: msgspec.Struct) -> None:
    fresh = type(detector)()
    for name in detector.__struct_fields__:
        setattr(detector, name, getattr(fresh, name))


class PageHinkley(msgspec.Struct):
    """Two-sided Page–Hinkley test with fading."""

    LEAST: ClassVar[int] = 30
    DELTA: ClassVar[float] = 0.005
    THRESHOLD: ClassVar[float] = 50.0
    FADE: ClassVar[float] = 1 - 0.0001

    n: int = 0
    mean: float = 0.0
    up: float = 0.0
    down: float = 0.0
    least: float = math.inf
    most: float = -1.0

    def update(self, x: float) -> Fired | None:
        """Take a value. O(1)."""
        self.n += 1
        self.mean += (x - self.mean) / self.n
        off = x - self.mean
        self.up = self.FADE * self.up + off - self.DELTA
        self.down = self.FADE * self.down + off + self.DELTA
        self.least, self.most = min(self.least, self.up), max(self.most, self.down)
        statistic = max(self.up - self.least, self.most - self.down)
        if self.n < self.LEAST or statistic <= self.THRESHOLD:
            return None
        _renew(self)
        return Fired(statistic, self.THRESHOLD)


class Cusum(msgspec.Struct):
    """One-sided cumulative sum above the mean of the first values."""

    FIRST: ClassVar[int] = 200
    ALLOWANCE: ClassVar[float] = 0.4
    THRESHOLD: ClassVar[float] = 15.0

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    sum: float = 0.0

    def update(self, x: float) -> Fired | None:
        """Take a value. O(1)."""
        self.n += 1
        if self.n <= self.FIRST:
            off = x - self.mean
            self.mean += off / self.n
            self.squares += off * (x - self.mean)
            return None
        deviation = max(math.sqrt(self.squares / self.FIRST), 0.1)
        self.sum = max(0.0, self.sum + (x - self.mean) / deviation - self.ALLOWANCE)
        if self.sum <= self.THRESHOLD:
            return None
        statistic = self.sum
        _renew(self)
        return Fired(statistic, self.THRESHOLD)


class Adwin(msgspec.Struct):
    """Adaptive windowing. ``buckets``: per level, oldest first, (sum, squared deviations) of 2^level values each."""

    DELTA: ClassVar[float] = 0.002
    EVERY: ClassVar[int] = 32
    PER_LEVEL: ClassVar[int] = 5
    LEAST_PART: ClassVar[int] = 5
    GRACE: ClassVar[int] = 10

    ticks: int = 0
    width: int = 0
    total: float = 0.0
    squares: float = 0.0
    buckets: list[list[tuple[float, float]]] = msgspec.field(default_factory=lambda: [[]])

    def update(self, x: float) -> Fired | None:
        """Take a value. O(log n), every 32nd time; else O(1) amortised."""
        self._insert(x)
        self.ticks += 1
        if self.ticks % self.EVERY or self.width <= self.GRACE:
            return None
        fired = None
        while (cut := self._cut()) is not None:
            fired = fired or cut
            self._drop_oldest()
        if fired is not None:
            _renew(self)
        return fired

    def _insert(self, x: float) -> None:
        self.buckets[0].append((x, 0.0))
        self.width += 1
        if self.width > 1:
            before = self.width - 1
            self.squares += before * (x - self.total / before) ** 2 / self.width
        self.total += x
        for level in range(len(self.buckets)):
            if len(self.buckets[level]) <= self.PER_LEVEL:
                break
            if level + 1 == len(self.buckets):
                self.buckets.append([])
            (sum1, squares1), (sum2, squares2) = self.buckets[level][:2]
            size = 2.0**level
            between = size * size * (sum1 / size - sum2 / size) ** 2 / (2 * size)
            self.buckets[level + 1].append((sum1 + sum2, squares1 + squares2 + between))
            del self.buckets[level][:2]

    def _cut(self) -> Fired | None:
        """Find where the older and the newer part of the window differ, from the oldest bucket on."""
        n0, sum0 = 0.0, 0.0
        spread = math.log(2 * math.log(self.width) / self.DELTA)
        for level in range(len(self.buckets) - 1, -1, -1):
            for sum_, _ in self.buckets[level]:
                n0, sum0 = n0 + 2.0**level, sum0 + sum_
                n1, sum1 = self.width - n0, self.total - sum0
                if n0 < self.LEAST_PART or n1 < self.LEAST_PART:
                    continue
                parts = 1 / (n0 - self.LEAST_PART + 1) + 1 / (n1 - self.LEAST_PART + 1)
                threshold = math.sqrt(2 * parts * self.squares / self.width * spread) + 2 / 3 * spread * parts
                if (apart := abs(sum0 / n0 - sum1 / n1)) > threshold:
                    return Fired(apart, threshold)
        return None

    def _drop_oldest(self) -> None:
        size, (sum_, squares) = 2 ** (len(self.buckets) - 1), self.buckets[-1].pop(0)
        self.width -= size
        self.total -= sum_
        apart = sum_ / size - self.total / self.width
        gone = squares + size * self.width * apart**2 / (size + self.width)
        self.squares = max(0.0, self.squares - gone)  # what is left of equal values may round below
        if not self.buckets[-1]:
            self.buckets.pop()
