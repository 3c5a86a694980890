"""Sums over labelled vectors, from which several classifiers are read out; they add, subtract and merge.

Of vectors φ (rows, float64) with class c and weight w are kept, per class, ``n_c = Σ w``, ``S_c = Σ w φ`` and
``Q_c = Σ w φ²``, and over all ``G = Σ w φφᵀ``. With one-hot targets ``XᵀY = S``, so ridge regression, linear
discriminants and class means are all functions of these sums (Zhuang et al., ACIL, 2022, arXiv:2205.14922; Panos et
al., First Session Adaptation, 2023, arXiv:2303.13199). Each sum is additive: in any order, in any batches, also where
old and new classes come mixed (G-ACIL, Zhuang et al. 2024, arXiv:2403.15706); in parts that are merged, as those of
several places (Hendryx et al., Federated Reconnaissance, 2021, arXiv:2109.00150); and backwards, by which a row is
forgotten as if it had never come, up to rounding (analytic continual unlearning, Tang et al. 2025, arXiv:2505.12239).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy

from streamfold.plugins._lapack import add_gram

Floats = npt.NDArray[np.float64]
_ROWS = 4
_TILE = 64


class Sums:
    """The sums of one head.

    Parameters
    ----------
    dim : of φ. gram : whether G is kept; class means alone do not need it. squares : whether Q is, for what
        :meth:`topped_up` needs.

    Examples
    --------
    >>> sums = Sums(2)
    >>> sums.add(np.array([[1.0, 0.0], [0.0, 2.0]]), ["a", "b"], np.ones(2))
    >>> sums.subtract(np.array([[1.0, 0.0]]), ["a"], np.ones(1))
    >>> sums.names, sums.gram.tolist()
    (['b'], [[0.0, 0.0], [0.0, 4.0]])
    """

    def __init__(self, dim: int, *, gram: bool = True, squares: bool = True) -> None:
        self.dim = dim
        self._squares = squares
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._count = np.zeros(_ROWS, np.int64)
        self._n = np.zeros(_ROWS)
        self._s = np.zeros((_ROWS, dim))
        self._q = np.zeros((_ROWS, dim if squares else 0))
        self._g: Floats = np.zeros((dim, dim) if gram else (0, 0))
        self._mirrored = True

    @property
    def count(self) -> int:
        """How many rows were added and not subtracted."""
        return int(self._count.sum())

    @property
    def gram(self) -> Floats:
        """``G (d, d)``. While rows come one half of it is kept; the other is filled in when it is read."""
        if not self._mirrored:
            for start in range(0, self.dim, _TILE):
                end = start + _TILE
                self._g[start:end, :start] = self._g[:start, start:end].T
                tile = self._g[start:end, start:end]
                tile[...] = np.triu(tile) + np.triu(tile, 1).T
            self._mirrored = True
        return self._g

    @property
    def names(self) -> list[str]:
        """The classes that have rows, sorted."""
        return sorted(self._rows)

    def per_class(self) -> tuple[Floats, Floats, Floats]:
        """Return ``n (C,)``, ``S (C, d)`` and ``Q (C, d)`` in order of :attr:`names`."""
        rows = [self._rows[name] for name in self.names]
        return self._n[rows], self._s[rows], self._q[rows]

    def add(self, phi: Floats, labels: Sequence[str], weights: Floats) -> None:
        """Add rows ``phi (n, d)`` with weights > 0. One product of matrices, whatever is stored."""
        self._update(phi, labels, weights, 1)

    def subtract(self, phi: Floats, labels: Sequence[str], weights: Floats) -> None:
        """Take rows back that were added."""
        self._update(phi, labels, weights, -1)

    def merge(self, other: Sums) -> None:
        """Add another's sums."""
        codes = np.array([self._row(name) for name in other._rows], np.int64)
        theirs = list(other._rows.values())
        for mine, of in ((self._count, other._count), (self._n, other._n), (self._s, other._s), (self._q, other._q)):
            mine[codes] += of[theirs]
        self._g += other.gram  # the half that counts, whether the other is filled in or not

    def scaled(self, factor: float, least: float) -> Sums:
        """Return a copy times a factor, without classes that then weigh less than ``least`` (of the heaviest, too)."""
        heaviest = max((self._n[row] for row in self._rows.values()), default=0.0)
        least = min(least, least * heaviest * factor)
        found = Sums(self.dim, gram=bool(self._g.size), squares=self._squares)
        for label in [label for label, row in self._rows.items() if self._n[row] * factor >= least]:
            row, mine = self._rows[label], found._row(label)
            found._count[mine] = self._count[row]
            for to, of in ((found._n, self._n), (found._s, self._s), (found._q, self._q)):
                to[mine] = of[row] * factor
        found._g[...] = self.gram * factor
        return found

    def topped_up(self) -> Sums:
        """Return a copy in which every class weighs as much as the heaviest one; these sums stay as they are.

        The rows that a class c lacks are thought of as drawn from ``N(m_c, diag v_c)``, as the pseudo-features of
        AEF-OCL are (Zhuang et al. 2024, arXiv:2405.17779). Instead of drawing, what they add on average is added:
        ``e m_c`` to S_c and ``e (m_c m_cᵀ + diag v_c)`` to G, so nothing is left to chance, and nothing changes where
        no class is lighter. As a few rows tell little of a variance, v_c counts the one within all classes as one row.
        """
        found = self.scaled(1.0, 0.0)
        rows = list(found._rows.values())
        n, s, q = found._n[rows], found._s[rows], found._q[rows]
        missing = (n.max() - n)[:, None]
        means = s / n[:, None]
        own = np.maximum(q / n[:, None] - means**2, 0.0)
        variances = (n[:, None] * own + n @ own / n.sum()) / (n + 1)[:, None]
        found._n[rows] += missing[:, 0]
        found._s[rows] += missing * means
        found._q[rows] += missing * (means**2 + variances)
        if found._g.size:
            found._g += (missing * means).T @ means
            found._g.flat[:: self.dim + 1] += (missing * variances).sum(axis=0)
        return found

    def __contains__(self, label: str) -> bool:
        return label in self._rows

    def _update(self, phi: Floats, labels: Sequence[str], weights: Floats, sign: int) -> None:
        if not len(phi):
            return
        known = self._rows
        codes = np.array([known[label] if label in known else self._row(label) for label in labels], np.int64)
        if self._g.size:
            scaled = phi if (weights == 1.0).all() else phi * np.sqrt(weights)[:, None]
            self._add_product(scaled, sign)
        order = np.argsort(codes, kind="stable")
        ends = codes[order]
        starts = np.flatnonzero(np.r_[True, ends[1:] != ends[:-1]])
        touched = ends[starts]
        bounds = np.r_[starts, len(codes)]
        by_class = scipy.sparse.csr_matrix((weights[order], order, bounds), shape=(len(starts), len(codes)))
        self._count[touched] += sign * np.diff(bounds)
        self._n[touched] += sign * np.add.reduceat(weights[order], starts)
        self._s[touched] += sign * (by_class @ phi)
        if self._squares:
            self._q[touched] += sign * (by_class @ (phi * phi))
        if sign < 0:
            self._drop_empty()

    def _add_product(self, rows: Floats, sign: int) -> None:
        """Add ``± rowsᵀ rows`` to G, in place and to one half of it: half the work."""
        add_gram(self._g, rows, float(sign))
        self._mirrored = False

    def _row(self, label: str) -> int:
        row = self._rows.get(label)
        if row is None:
            if len(self._rows) == len(self._n):  # then no row is free
                for name in ("_count", "_n", "_s", "_q"):
                    old = getattr(self, name)
                    setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            row = self._free.pop() if self._free else len(self._rows)
            self._rows[label] = row
        return row

    def _drop_empty(self) -> None:
        """Rows without evidence start from zero again: nothing is left of them, not even rounding."""
        for label in [label for label, row in self._rows.items() if self._count[row] == 0]:
            row = self._rows.pop(label)
            self._free.append(row)
            self._n[row], self._s[row], self._q[row] = 0.0, 0.0, 0.0
        if not self._rows:
            self._g[...] = 0.0


def relu_expansion(dim: int, size: int, seed: int) -> tuple[Floats, Floats]:
    """Draw the weights ``(dim, size)`` and biases ``(size,)`` of a fixed random layer.

    ``relu(φ W + b)`` with normal weights makes classes separable by a hyperplane that were not (random vector
    functional links, Pao et al. 1994, doi:10.1016/0925-2312(94)90053-1).
    """
    rng = np.random.default_rng(seed)
    return rng.standard_normal((dim, size)), rng.standard_normal(size)
