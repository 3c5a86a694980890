"""The per-event loop of ``deepfm``, compiled: forward and backward pass by hand; the equations are in ``deepfm.py``.

A pair has five fields: user, its tokens, item, its tokens, the item's content. Its input ``x`` is their vectors, one
after the other. A unit of a hidden layer is a row of ``layers``: first its weights and, last, its bias, then the sums
of squared slopes of each; ``hidden`` units of the first layer, as many of the second, then the output. The rows of
``content`` times what is told of the item give the content's vector, the last row its linear part: values, then sums of
squared slopes. What is told of most items may be zeros: then nothing of the content takes part, and nothing moves.
"""

from __future__ import annotations

from math import sqrt

import numba
import numpy as np

from streamfold.plugins._kernels_factor import keys
from streamfold.plugins._kernels_hash import MET, admit, drawn, find_all, key_of, probability, rows_to_learn

COLUMNS, FIELDS, PARTS = 5, 5, 6
_WEIGHT, _SQUARES = 3, 4
"""Columns of a row after the first three: its weight in the linear part, and the sum of its squared slopes."""
_CONTENT = 4
"""The last field."""
ALL, ALL_SQUARES, CLOCK = 0, 1, 2
"""Places in the head: the bias of everything, the sum of its squared slopes, how many examples were learned."""


@numba.njit(cache=True)
def _field(place, split):  # type: ignore[no-untyped-def]
    """Which field the row at a place belongs to: user, its tokens, item (from ``split`` on), its tokens."""
    return (0 if place == 0 else 1) if place < split else (2 if place == split else 3)


@numba.njit(cache=True)
def _share(field, split, n):  # type: ignore[no-untyped-def]
    """What one row counts in its field: tokens are averaged."""
    return 1.0 / (split - 1) if field == 1 else 1.0 / (n - split - 1) if field == 3 else 1.0


@numba.njit(cache=True)
def _input(rows, split, table, factors, x, parts):  # type: ignore[no-untyped-def]
    """Gather the input, and the linear part of user and item."""
    k = factors.shape[2]
    x[:] = 0.0
    for place in range(len(rows)):
        row = rows[place]
        if row < 0 or table[row, MET] <= 0.0:  # of what is new nothing is known: it stands in the middle
            continue
        field = _field(place, split)
        share = _share(field, split, len(rows))
        parts[1 + field // 2] += share * table[row, _WEIGHT]
        for f in range(k):
            x[field * k + f] += share * factors[row, 0, f]


@numba.njit(cache=True)
def _input_content(told, content, x, parts):  # type: ignore[no-untyped-def]
    """Add the content's vector to the input, and its linear part."""
    k = len(content) - 1
    for i in range(len(told)):
        if told[i] != 0.0:
            for f in range(k):
                x[_CONTENT * k + f] += content[f, 0, i] * told[i]
            parts[5] += content[k, 0, i] * told[i]


@numba.njit(cache=True)
def _layer(layers, first, given, into):  # type: ignore[no-untyped-def]
    """Activate a layer's units, which are the rows from ``first`` on."""
    for h in range(len(into)):
        total = layers[first + h, 0, -1]
        for i in range(len(given)):
            total += layers[first + h, 0, i] * given[i]
        into[h] = max(0.0, total)


@numba.njit(cache=True)
def _forward(  # type: ignore[no-untyped-def]
    rows, split, told, table, factors, layers, head, content, x, one, two, parts
):
    """Fill input, hidden layers and parts of the log-odds (all … layers, content); return their sum."""
    k, hidden = factors.shape[2], len(one)
    parts[:] = 0.0
    parts[0] = head[0, ALL]
    _input(rows, split, table, factors, x, parts)
    _input_content(told, content, x, parts)
    for f in range(k):  # Σ of products of two = half of (square of the sum − sum of the squares)
        total, squares = 0.0, 0.0
        for field in range(FIELDS):
            total += x[field * k + f]
            squares += x[field * k + f] ** 2
        parts[3] += 0.5 * (total * total - squares)
    _layer(layers, 0, x, one)
    _layer(layers, hidden, one, two)
    for h in range(hidden):
        parts[4] += layers[2 * hidden, 0, h] * two[h]
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5]


@numba.njit(cache=True)
def _backward(layers, k, x, one, two, of_x, of_one, of_two):  # type: ignore[no-untyped-def]
    """Fill the slopes of the log-odds by input and by units before activation."""
    hidden = len(one)
    for h in range(hidden):
        of_two[h] = layers[2 * hidden, 0, h] if two[h] > 0.0 else 0.0
    of_one[:] = 0.0
    for h in range(hidden):
        if of_two[h] != 0.0:
            for i in range(hidden):
                of_one[i] += of_two[h] * layers[hidden + h, 0, i]
    for f in range(k):
        total = 0.0
        for field in range(FIELDS):
            total += x[field * k + f]
        for field in range(FIELDS):
            of_x[field * k + f] = total - x[field * k + f]
    for h in range(hidden):
        if one[h] <= 0.0:
            of_one[h] = 0.0
        elif of_one[h] != 0.0:
            for i in range(len(x)):
                of_x[i] += of_one[h] * layers[h, 0, i]


@numba.njit(cache=True)
def _moved(value, squares, slope, rate):  # type: ignore[no-untyped-def]
    """Return a parameter and its sum of squared slopes after a step of AdaGrad."""
    squares += slope * slope
    return value - rate * slope / sqrt(1.0 + squares), squares


@numba.njit(cache=True)
def _step_unit(unit, given, slope, rate):  # type: ignore[no-untyped-def]
    """Move a unit's weights and bias; ``slope``: of the loss, by what the unit adds up."""
    if slope == 0.0:
        return
    for i in range(len(given)):
        if given[i] != 0.0:
            unit[0, i], unit[1, i] = _moved(unit[0, i], unit[1, i], slope * given[i], rate)
    unit[0, -1], unit[1, -1] = _moved(unit[0, -1], unit[1, -1], slope, rate)


@numba.njit(cache=True)
def _step_layers(layers, x, one, two, of_one, of_two, slope, rate):  # type: ignore[no-untyped-def]
    hidden = len(one)
    for h in range(hidden):
        _step_unit(layers[h], x, slope * of_one[h], rate)
        _step_unit(layers[hidden + h], one, slope * of_two[h], rate)
    output = layers[2 * hidden]
    for h in range(hidden):  # the output's bias is that of all
        if two[h] != 0.0:
            output[0, h], output[1, h] = _moved(output[0, h], output[1, h], slope * two[h], rate)


@numba.njit(cache=True)
def _step_rows(rows, split, table, factors, of_x, slope, linear_rate, rate, pull, spread):  # type: ignore[no-untyped-def]
    """Move what ids and tokens weigh, and their vectors."""
    k = factors.shape[2]
    for place in range(len(rows)):
        row = rows[place]
        if row < 0:
            continue
        if table[row, MET] <= 0.0:
            for f in range(k):
                factors[row, 0, f], factors[row, 1, f] = spread * drawn(table[row, 0], f), 0.0
        table[row, MET] += 1.0
        field = _field(place, split)
        by = slope * _share(field, split, len(rows))
        table[row, _WEIGHT], table[row, _SQUARES] = _moved(
            table[row, _WEIGHT], table[row, _SQUARES], by + pull * table[row, _WEIGHT], linear_rate
        )
        for f in range(k):
            slope_f = by * of_x[field * k + f] + pull * factors[row, 0, f]
            factors[row, 0, f], factors[row, 1, f] = _moved(factors[row, 0, f], factors[row, 1, f], slope_f, rate)


@numba.njit(cache=True)
def _step_content(content, told, of_x, slope, rate, pull):  # type: ignore[no-untyped-def]
    """Move the map from what is told of the item to its vector, and the content's weights."""
    k = len(content) - 1
    for i in range(len(told)):
        if told[i] != 0.0:
            for f in range(k + 1):
                by = slope * told[i] * (of_x[_CONTENT * k + f] if f < k else 1.0)
                content[f, 0, i], content[f, 1, i] = _moved(
                    content[f, 0, i], content[f, 1, i], by + pull * content[f, 0, i], rate
                )


@numba.njit(cache=True)
def _begin(layers, content, spread):  # type: ignore[no-untyped-def]
    """Start the layers' weights (He et al. 2015, arXiv:1502.01852); numbers that their places alone decide.

    What is told of an item has about length one, so its vector starts as large as those of ids. The first layer's
    weights are as large as if there were no content, which most items may not have.
    """
    hidden, k = len(layers) // 2, len(content) - 1
    for unit in range(len(layers)):
        n, fan_in = (FIELDS * k, _CONTENT * k) if unit < hidden else (hidden, hidden)
        for i in range(n):
            layers[unit, 0, i] = sqrt(6.0 / fan_in) * drawn(key_of(np.uint64(unit), 7), i)
    for f in range(k):
        for i in range(content.shape[2]):
            content[f, 0, i] = spread * drawn(key_of(np.uint64(f), 8), i)


@numba.njit(cache=True)
def writable(pairs, table, upto, keep):  # type: ignore[no-untyped-def]
    """Return the rows that learning pairs until then may write."""
    return rows_to_learn(table, keys(pairs)[0], upto, keep)


@numba.njit(cache=True)
def learn(  # type: ignore[no-untyped-def]
    pairs, told, labels, swaps, counts, table, factors, layers, head, content,
    linear_rate, rate, content_rate, pull, spread, keep,
):  # fmt: skip
    """Learn pairs in order; return each one's score from before it."""
    found, ends, trait_ends = keys(pairs)
    k, hidden = factors.shape[2], len(layers) // 2
    x, of_x = np.empty(FIELDS * k), np.empty(FIELDS * k)
    one, two, of_one, of_two = np.empty(hidden), np.empty(hidden), np.empty(hidden), np.empty(hidden)
    scores, parts = np.empty(len(labels)), np.empty(PARTS)
    for j in range(len(labels)):
        if head[0, CLOCK] == 0.0:
            _begin(layers, content, spread)
        head[0, CLOCK] += 1.0
        rows = np.empty(ends[j + 1] - ends[j], np.int64)
        admit(table, found[ends[j] : ends[j + 1]], head[0, CLOCK], keep, rows)
        split = 1 + trait_ends[j + 1] - trait_ends[j]
        scores[j] = probability(
            _forward(rows, split, told[j], table, factors, layers, head, content, x, one, two, parts)
        )
        slope = scores[j] - labels[j]
        if swaps[j]:  # the loss of the label less that of its opposite, which was learned
            slope = 1.0 - 2.0 * labels[j]
        slope *= counts[j]
        _backward(layers, k, x, one, two, of_x, of_one, of_two)
        _step_layers(layers, x, one, two, of_one, of_two, slope, rate)
        _step_content(content, told[j], of_x, slope, content_rate, pull * counts[j])
        _step_rows(rows, split, table, factors, of_x, slope, linear_rate, rate, pull * counts[j], spread)
        head[0, ALL], head[0, ALL_SQUARES] = _moved(head[0, ALL], head[0, ALL_SQUARES], slope, linear_rate)
    return scores


@numba.njit(cache=True)
def predict(pairs, told, table, factors, layers, head, content):  # type: ignore[no-untyped-def]
    """Return scores, whether each item was met, and the parts of the log-odds."""
    found, ends, trait_ends = keys(pairs)
    n, k, hidden = len(ends) - 1, factors.shape[2], len(layers) // 2
    x, one, two = np.empty(FIELDS * k), np.empty(hidden), np.empty(hidden)
    scores, known, parts = np.empty(n), np.empty(n, np.bool_), np.empty((n, PARTS))
    for j in range(n):
        rows = np.empty(ends[j + 1] - ends[j], np.int64)
        find_all(table, found[ends[j] : ends[j + 1]], rows)
        split = 1 + trait_ends[j + 1] - trait_ends[j]
        scores[j] = probability(
            _forward(rows, split, told[j], table, factors, layers, head, content, x, one, two, parts[j])
        )
        known[j] = rows[split] >= 0 and table[rows[split], MET] > 0.0
    return scores, known, parts


@numba.njit(cache=True)
def score(pairs, told, table, factors, layers, head, content):  # type: ignore[no-untyped-def]
    """Return the scores of :func:`predict` alone."""
    return predict(pairs, told, table, factors, layers, head, content)[0]
