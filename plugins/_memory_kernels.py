"""The error memories' loops, compiled; a readable twin of each is in the tests.

Pairs of one user come as 64-bit codes: ``user``, ``items (n,)``, and ``tokens``, of pair j
``tokens[ends[j] : ends[j + 1]]``, the item's first, then ``own`` ones of the user. The arithmetic is the same whether
one pair is asked about or many, so that what is served is what is scored while folding.
"""

from __future__ import annotations

import numba
import numpy as np

LEAST = 1e-4
"""Experts' probabilities stay so far from 0 and 1: none loses more than 9.2 nats at once."""
VIEWS = 3
"""Of what a sketch's arrays see: the user, the item, the user with the tokens."""
_GOLDEN, _A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_1, _2, _4 = np.uint64(1), np.uint64(2), np.uint64(4)
_16, _27, _30, _31, _32, _48, _56 = (np.uint64(bits) for bits in (16, 27, 30, 31, 32, 48, 56))
_LOW = np.uint64(0xFFFF)
_ODD, _PAIR, _NIBBLE = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTES = np.uint64(0x0101010101010101)
_INVERSE_ROOT = np.append(0.0, 1.0 / np.sqrt(np.arange(1.0, 65.0)))
"""Of a number of bits."""


@numba.njit(cache=True)
def mix(x):  # type: ignore[no-untyped-def]
    """Scatter 64 bits (splitmix64's finaliser)."""
    x = (x ^ (x >> _30)) * _A
    x = (x ^ (x >> _27)) * _B
    return x ^ (x >> _31)


@numba.njit(cache=True)
def share_of(seq, n):  # type: ignore[no-untyped-def]
    """A number in [0, 1) that an example's name alone decides."""
    return np.float64(mix(mix(np.uint64(seq)) + np.uint64(n) * _GOLDEN) >> np.uint64(11)) / 9007199254740992.0


# -- the mixture of λ -------------------------------------------------------------------------------------------------
@numba.njit(cache=True)
def _expert(base, correction, amount, logit):  # type: ignore[no-untyped-def]
    said = base
    if amount != 0.0 and logit:
        kept = min(max(base, 1e-9), 1.0 - 1e-9)
        said = 1.0 / (1.0 + np.exp(-(np.log(kept / (1.0 - kept)) + amount * correction)))
    elif amount != 0.0:
        said = base + amount * correction
    return min(max(said, LEAST), 1.0 - LEAST)


@numba.njit(cache=True)
def _total(terms):  # type: ignore[no-untyped-def]
    total = 0.0
    for term in terms:
        total += term
    return total


@numba.njit(cache=True)
def mixed(log_weights, lambdas, base, terms, logit):  # type: ignore[no-untyped-def]
    """Return the mixture for each pair."""
    found = base.copy()
    if len(lambdas) > 1:
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        for j in range(len(base)):
            correction = _total(terms[j])
            found[j] = 0.0
            for i in range(len(lambdas)):
                found[j] += weights[i] * _expert(base[j], correction, lambdas[i], logit)
    return found


@numba.njit(cache=True)
def _log_odds(p):  # type: ignore[no-untyped-def]
    kept = min(max(p, 1e-9), 1.0 - 1e-9)
    return np.log(kept / (1.0 - kept))


@numba.njit(cache=True)
def base_of(served, base, now):  # type: ignore[no-untyped-def]
    """Return what the base said when an example was shown, away from certainty; ``served``: nan where nothing did.

    Another system's score may be no probability: then it is what the base says now.
    """
    said = base
    if 0.0 <= served <= 1.0:
        said = 1.0 / (1.0 + np.exp(_log_odds(now) - _log_odds(base) - _log_odds(served)))
    return min(max(said, LEAST), 1.0 - LEAST)


@numba.njit(cache=True)
def rewarded(log_weights, lambdas, base, terms, logit, label, counts, share):  # type: ignore[no-untyped-def]
    """Add each expert's log-likelihood to its weight, in place, as far as the example counts; give a share to all."""
    n, correction = len(lambdas), _total(terms)
    for i in range(n):
        said = _expert(base, correction, lambdas[i], logit)
        log_weights[i] += counts * (np.log(said) if label > 0.5 else np.log1p(-said))
    most = log_weights.max()
    total = most + np.log(np.exp(log_weights - most).sum())
    for i in range(n):
        log_weights[i] -= total
        if share > 0.0:
            log_weights[i] = np.log((1.0 - share) * np.exp(log_weights[i]) + share / n)


# -- the residual table: rows of (R, V, seconds) ----------------------------------------------------------------------
@numba.njit(cache=True)
def _row(one, other, role, rows):  # type: ignore[no-untyped-def]
    return np.int64(mix(mix(one + np.uint64(role) * _GOLDEN) + other) % np.uint64(rows))


@numba.njit(cache=True)
def table_rows(user, item, tokens, own, rows):  # type: ignore[no-untyped-def]
    """Return the rows of one pair: user, item, then (user, token of the item) and (item, token of the user)."""
    n = len(tokens)
    found = np.empty(2 + n, np.int64)
    found[0] = _row(user, np.uint64(0), 1, rows)
    found[1] = _row(item, np.uint64(0), 2, rows)
    for j in range(n):
        found[2 + j] = _row(user if j < n - own else item, tokens[j], 3, rows)
    return found


@numba.njit(cache=True)
def table_rows_alone(users, items, tokens, own, rows):  # type: ignore[no-untyped-def]
    """As :func:`table_rows`; arrays of one code each are passed faster than the codes."""
    return table_rows(users[0], items[0], tokens, own, rows)


@numba.njit(cache=True)
def rows_of_table(pairs, rows):  # type: ignore[no-untyped-def]
    """Return the rows of pairs of several users, one pair's after the other's, and where each ends."""
    users, items, of_users, user_ends, of_items, item_ends = pairs
    ends = np.zeros(len(users) + 1, np.int64)
    for j in range(len(users)):
        ends[j + 1] = ends[j] + 2 + item_ends[j + 1] - item_ends[j] + user_ends[j + 1] - user_ends[j]
    found = np.empty(ends[-1], np.int64)
    for j in range(len(users)):
        a = ends[j]
        found[a], found[a + 1] = _row(users[j], np.uint64(0), 1, rows), _row(items[j], np.uint64(0), 2, rows)
        a += 2
        for token in of_items[item_ends[j] : item_ends[j + 1]]:
            found[a] = _row(users[j], token, 3, rows)
            a += 1
        for token in of_users[user_ends[j] : user_ends[j + 1]]:
            found[a] = _row(items[j], token, 3, rows)
            a += 1
    return found, ends


@numba.njit(cache=True)
def _term(row, at_s, rate, prior):  # type: ignore[no-untyped-def]
    faded = np.exp(-rate * max(0.0, at_s - row[2]))
    return faded * row[0] / (faded * row[1] + prior)


@numba.njit(cache=True)
def _terms(values, rows, at_s, rate, prior, into):  # type: ignore[no-untyped-def]
    into[0] = _term(values[rows[0]], at_s, rate, prior)
    into[1] = _term(values[rows[1]], at_s, rate, prior)
    into[2] = 0.0
    for row in rows[2:]:
        into[2] += _term(values[row], at_s, rate, prior) / (len(rows) - 2)


@numba.njit(cache=True)
def table_terms(values, user, items, tokens, ends, own, at_s, rate, prior):  # type: ignore[no-untyped-def]
    """Return ``(n, 3)``: what user, item and tokens add to the log-odds."""
    found = np.empty((len(items), 3))
    for j in range(len(items)):
        rows = table_rows(user, items[j], tokens[ends[j] : ends[j + 1]], own, len(values))
        _terms(values, rows, at_s, rate, prior, found[j])
    return found


@numba.njit(cache=True)
def table_learn(values, rows, at_s, rate, prior, label, stored, swaps, counts):  # type: ignore[no-untyped-def]
    """Add one example in place; each term learns what those before it leave over."""
    terms = np.empty(3)
    _terms(values, rows, at_s, rate, prior, terms)
    logit = np.log(stored / (1.0 - stored))
    for j in range(len(rows)):
        row = values[rows[j]]
        if 0 < j < 3:
            logit += terms[j - 1]
        said = 1.0 / (1.0 + np.exp(-logit))
        newest = max(row[2], at_s) if row[1] > 0.0 else at_s
        faded, weight = np.exp(-rate * (newest - row[2])), counts * np.exp(-rate * (newest - at_s))
        if row[1] == 0.0:
            faded = 0.0
        row[0] = faded * row[0] + weight * (2.0 * label - 1.0 if swaps else label - said)
        row[1] = faded * row[1] + (0.0 if swaps else weight * said * (1.0 - said))
        row[2] = newest


@numba.njit(cache=True)
def _table_step(  # type: ignore[no-untyped-def]
    values, rows, log_weights, lambdas, share, at_s, label, swaps, counts, base, served, rate, prior, terms
):
    """Learn one example, ``base (1,)``; return its corrected score from before it."""
    _terms(values, rows, at_s, rate, prior, terms[0])
    score = mixed(log_weights, lambdas, base, terms, True)[0]
    if not swaps:
        rewarded(log_weights, lambdas, base[0], terms[0], True, label, counts, share)
    table_learn(values, rows, at_s, rate, prior, label, base_of(served, base[0], score), swaps, counts)
    return score


@numba.njit(cache=True)
def table_learn_all(values, rows, ends, log_weights, lambdas, share, shown, rate, prior):  # type: ignore[no-untyped-def]
    """Learn examples in order: first λ, then their rows; return each one's corrected score from before it."""
    at_s, labels, swaps, counts, base, served = shown
    scores, terms = np.empty(len(labels)), np.empty((1, 3))
    for j in range(len(labels)):
        scores[j] = _table_step(
            values, rows[ends[j] : ends[j + 1]], log_weights, lambdas, share, at_s[j], labels[j], swaps[j], counts[j],
            base[j : j + 1], served[j], rate, prior, terms,
        )  # fmt: skip
    return scores


@numba.njit(cache=True)
def table_learn_alone(values, rows, log_weights, lambdas, share, at_s, label, swaps, counts, served, base, rate, prior):  # type: ignore[no-untyped-def]
    """As :func:`table_learn_all`, of one example."""
    scores, terms = np.empty(1), np.empty((1, 3))
    scores[0] = _table_step(
        values, rows, log_weights, lambdas, share, at_s, label, swaps, counts, base, served, rate, prior, terms
    )
    return scores


# -- the sketch: rows of (count, Σ label, Σ said before) --------------------------------------------------------------
@numba.njit(cache=True)
def _plane(feature, bit):  # type: ignore[no-untyped-def]
    """A feature's coordinate across a hyperplane: four uniform numbers' sum, near enough normal."""
    x = mix(feature + np.uint64(bit + 1) * _GOLDEN)
    return np.float64((x & _LOW) + ((x >> _16) & _LOW) + ((x >> _32) & _LOW) + (x >> _48)) - 131070.0


@numba.njit(cache=True)
def sketch_rows(user, item, tokens, arrays, bits):  # type: ignore[no-untyped-def]
    """Return one row in each array: which side of ``bits`` hyperplanes the pair's key lies on, as the array sees it."""
    found = np.empty(arrays, np.int64)
    for k in range(arrays):
        view, bucket = k % VIEWS, 0
        for b in range(k * bits, (k + 1) * bits):
            side = _plane(item if view == 1 else user, b)
            if view == 2 and len(tokens):
                of_tokens = 0.0
                for token in tokens:
                    of_tokens += _plane(token, b)
                side += of_tokens / np.sqrt(len(tokens))
            bucket = 2 * bucket + (side > 0.0)
        found[k] = (k << bits) + bucket
    return found


@numba.njit(cache=True)
def sketch_rows_alone(users, items, tokens, arrays, bits):  # type: ignore[no-untyped-def]
    """As :func:`sketch_rows`; arrays of one code each are passed faster than the codes."""
    return sketch_rows(users[0], items[0], tokens, arrays, bits)


@numba.njit(cache=True)
def rows_of_sketch(pairs, arrays, bits):  # type: ignore[no-untyped-def]
    """Return the rows ``(n, arrays)`` of pairs of several users."""
    users, items, of_users, user_ends, of_items, item_ends = pairs
    found = np.empty((len(users), arrays), np.int64)
    for j in range(len(users)):
        n, m = item_ends[j + 1] - item_ends[j], user_ends[j + 1] - user_ends[j]
        tokens = np.empty(n + m, np.uint64)
        tokens[:n] = of_items[item_ends[j] : item_ends[j + 1]]
        tokens[n:] = of_users[user_ends[j] : user_ends[j + 1]]
        found[j] = sketch_rows(users[j], items[j], tokens, arrays, bits)
    return found


@numba.njit(cache=True)
def _view_term(values, rows, view, prior):  # type: ignore[no-untyped-def]
    count, residual = 0.0, 0.0
    for k in range(view, len(rows), VIEWS):
        row = values[rows[k]]
        count += row[0] + prior
        residual += row[1] - row[2]
    return residual / count


@numba.njit(cache=True)
def sketch_terms(values, user, items, tokens, ends, arrays, bits, prior):  # type: ignore[no-untyped-def]
    """Return ``(n, views)``: what the arrays of each view add to the probability."""
    found = np.empty((len(items), VIEWS))
    for j in range(len(items)):
        rows = sketch_rows(user, items[j], tokens[ends[j] : ends[j + 1]], arrays, bits)
        for view in range(VIEWS):
            found[j, view] = _view_term(values, rows, view, prior)
    return found


@numba.njit(cache=True)
def sketch_learn(values, rows, prior, label, stored, swaps, counts):  # type: ignore[no-untyped-def]
    """Add one example in place; each view learns what those before it leave over."""
    for view in range(VIEWS):
        term = _view_term(values, rows, view, prior)
        for k in range(view, len(rows), VIEWS):
            row = values[rows[k]]
            if swaps:
                row[1] += counts * (2.0 * label - 1.0)
            else:
                row[0] += counts
                row[1] += counts * label
                row[2] += counts * stored
        stored = min(max(stored + term, 0.0), 1.0)


@numba.njit(cache=True)
def _sketch_step(values, rows, log_weights, lambdas, share, label, swaps, counts, base, served, prior, terms):  # type: ignore[no-untyped-def]
    """Learn one example, ``base (1,)``; return its corrected score from before it."""
    for view in range(VIEWS):
        terms[0, view] = _view_term(values, rows, view, prior)
    score = mixed(log_weights, lambdas, base, terms, False)[0]
    if not swaps:
        rewarded(log_weights, lambdas, base[0], terms[0], False, label, counts, share)
    sketch_learn(values, rows, prior, label, base_of(served, base[0], score), swaps, counts)
    return score


@numba.njit(cache=True)
def sketch_learn_all(values, rows, log_weights, lambdas, share, shown, prior):  # type: ignore[no-untyped-def]
    """Learn examples in order: first λ, then their buckets; return each one's corrected score from before it."""
    _, labels, swaps, counts, base, served = shown
    scores, terms = np.empty(len(labels)), np.empty((1, VIEWS))
    for j in range(len(labels)):
        scores[j] = _sketch_step(
            values, rows[j], log_weights, lambdas, share, labels[j], swaps[j], counts[j], base[j : j + 1], served[j],
            prior, terms,
        )  # fmt: skip
    return scores


@numba.njit(cache=True)
def sketch_learn_alone(values, rows, log_weights, lambdas, share, label, swaps, counts, served, base, prior):  # type: ignore[no-untyped-def]
    """As :func:`sketch_learn_all`, of one example."""
    scores, terms = np.empty(1), np.empty((1, VIEWS))
    scores[0] = _sketch_step(
        values, rows, log_weights, lambdas, share, label, swaps, counts, base, served, prior, terms
    )
    return scores


# -- nearest neighbours in a ring: keys (user, item, tokens), numbers (label, said before, weight, seconds) -----------
@numba.njit(cache=True)
def ones(x):  # type: ignore[no-untyped-def]
    """Count the bits that are set."""
    x = x - ((x >> _1) & _ODD)
    x = (x & _PAIR) + ((x >> _2) & _PAIR)
    x = (x + (x >> _4)) & _NIBBLE
    return np.int64((x * _BYTES) >> _56)


@numba.njit(cache=True)
def token_bits(tokens):  # type: ignore[no-untyped-def]
    """Tokens as a set of 64 buckets."""
    found = np.uint64(0)
    for token in tokens:
        found |= _1 << (mix(token) & np.uint64(63))
    return found


@numba.njit(cache=True)
def _newest_first(keys, written, user):  # type: ignore[no-untyped-def]
    """Take a ring's samples apart, newest first: similarity by the user, items, tokens, inverse roots of how many."""
    held = min(written, len(keys))
    by_user, items = np.empty(held), np.empty(held, np.int64)
    tokens, roots = np.empty(held, np.uint64), np.empty(held)
    slot = written % len(keys)
    for age in range(held):
        slot = slot - 1 if slot > 0 else len(keys) - 1  # a remainder would cost more than the rest
        by_user[age], items[age] = 0.4 * (keys[slot, 0] == user), keys[slot, 1]
        tokens[age] = np.uint64(keys[slot, 2])
        roots[age] = _INVERSE_ROOT[ones(tokens[age])]
    return by_user, items, tokens, roots


@numba.njit(cache=True)
def _similarities(samples, item, bits, into):  # type: ignore[no-untyped-def]
    """Fill in the cosine of a key with each sample's."""
    by_user, items, tokens, roots = samples
    own = 0.2 * _INVERSE_ROOT[ones(bits)]
    for age in range(len(into)):
        into[age] = by_user[age] + 0.4 * (items[age] == item) + own * ones(tokens[age] & bits) * roots[age]


@numba.njit(cache=True)
def _nearest(similarities, scores, ages):  # type: ignore[no-untyped-def]
    """Fill a heap with the greatest similarities, of equal ones the newest, and their ages; return how many.

    The first is the least of them. Its order decides the last bits of what is summed over it, and what was folded
    rests on these: another heap is another version of the policy.
    """
    most = len(scores)
    kept = min(most, len(similarities))
    for age in range(kept):
        score, at = similarities[age], age
        while at > 0 and score <= scores[(at - 1) // 2]:  # of equal ones the older goes up, and each is older
            scores[at], ages[at] = scores[(at - 1) // 2], ages[(at - 1) // 2]
            at = (at - 1) // 2
        scores[at], ages[at] = score, age
    for age in range(kept, len(similarities)):
        score = similarities[age]
        if score <= scores[0]:
            continue
        at, child = 0, 1
        while child < most:
            if child + 1 < most:  # without a branch that is as often wrong as right
                tie = (scores[child + 1] == scores[child]) & (ages[child + 1] > ages[child])
                child += (scores[child + 1] < scores[child]) | tie
            if scores[child] >= score:  # what comes is older than all
                break
            scores[at], ages[at] = scores[child], ages[child]
            at, child = child, 2 * child + 1
        scores[at], ages[at] = score, age
    return kept


@numba.njit(cache=True)
def ring_terms(keys, numbers, written, user, items, tokens, ends, base, k, tau, gamma):  # type: ignore[no-untyped-def]
    """Return ``(n, 1)`` what the neighbours add to the probability, and their slots and attentions ``(n, k)``."""
    n = len(items)
    found, attention, slots = np.zeros((n, 1)), np.zeros((n, k)), np.full((n, k), -1)
    samples = _newest_first(keys, written, np.int64(user))
    similarities = np.empty(len(samples[0]))
    kept = min(k, len(similarities))
    if not kept:
        return found, slots, attention
    same = _same_key(samples[1], items, tokens, ends)
    for j in range(n):
        scores, at = attention[j], slots[j]
        if same[j] >= 0:
            scores[:], at[:] = attention[same[j]], slots[same[j]]
        else:
            _similarities(samples, np.int64(items[j]), token_bits(tokens[ends[j] : ends[j + 1]]), similarities)
            _nearest(similarities, scores, at)
            total, most, said, weight = 0.0, scores[:kept].max(), -1.0, 0.0
            for i in range(kept):
                at[i] = (written - 1 - at[i]) % len(keys)
                if scores[i] != said:  # neighbours are often as similar as the one before
                    said = scores[i]
                    weight = np.exp((said - most) / tau)
                scores[i] = numbers[at[i], 2] * weight
                total += scores[i]
            for i in range(kept):
                scores[i] /= total
        for i in range(kept):
            label, said = numbers[at[i], 0], numbers[at[i], 1]
            found[j, 0] += scores[i] * ((1.0 - gamma) * (label - said) + gamma * (label - base[j]))
    return found, slots, attention


@numba.njit(cache=True)
def _same_key(held, items, tokens, ends):  # type: ignore[no-untyped-def]
    """Return for each pair an earlier one with the same neighbours, or −1: as many tokens' buckets and the same ones,
    and both items in no sample."""
    n = len(items)
    found = np.full(n, -1)
    if n == 1:
        return found
    met = np.zeros(1 << 16, np.bool_)
    for item in held:
        met[item & 0xFFFF] = True
    size = 1
    while size < 2 * n:
        size *= 2
    first, sets = np.full(size, -1), np.empty(n, np.uint64)
    for j in range(n):
        sets[j] = token_bits(tokens[ends[j] : ends[j + 1]])
        if met[np.int64(items[j]) & 0xFFFF]:  # or an item that looks like one
            continue
        at = np.int64(mix(sets[j]) & np.uint64(size - 1))
        while first[at] >= 0 and sets[first[at]] != sets[j]:
            at = (at + 1) & (size - 1)
        if first[at] < 0:
            first[at] = j
        else:
            found[j] = first[at]
    return found


@numba.njit(cache=True)
def ring_find(keys, numbers, written, user, item, at_s):  # type: ignore[no-untyped-def]
    """Return the slot of a pair's sample of a time, or −1."""
    for age in range(min(written, len(keys))):
        slot = (written - 1 - age) % len(keys)
        if keys[slot, 0] == np.int64(user) and keys[slot, 1] == np.int64(item) and numbers[slot, 3] == at_s:
            return slot
    return -1
