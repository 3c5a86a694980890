r"""BM25 under inserts and deletes, exact at every moment.

.. math:: s(q, d) = \sum_{t \in q} \ln\Bigl(1 + \frac{N - n_t + ½}{n_t + ½}\Bigr)
    \frac{f_{t,d}\,(k_1 + 1)}{f_{t,d} + k_1 (1 - b + b\,|d| / \overline{|d|})}

where :math:`N` counts live documents, :math:`n_t` those with term t, :math:`f` weighted frequencies, :math:`|d|` the
weighted length. All of them follow each insert and delete at once, so scores equal those of an index built from
scratch over the live documents, bit for bit.

References: S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework", doi:10.1561/1500000019.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError
from streamfold.core.stores._top import best_slots
from streamfold.core.stores.abc import Floats, Ids

_MIN_DEAD = 256
_INT, _FLOAT = Struct("i"), Struct("f")


class BM25:
    """Postings by term over documents given as term counts.

    A document gets the next slot; each term has the slots and frequencies of its documents as raw int32 and float32 in
    two ``bytearray`` (8 bytes a posting; no ``array``, which the garbage collector would go through), each slot its
    list of terms (4 bytes), by which a delete finds the counts to lower. A deleted document stays in the postings,
    scored 0, until a fifth of the slots is dead; then all is renumbered. Insert and delete are O(terms of the document)
    amortised, a search O(slots + postings of its terms). A lock makes calls from several threads safe.

    Parameters
    ----------
    k1, b : saturation of frequency; weight of length.

    Examples
    --------
    >>> index = BM25()
    >>> index.put(1, {"radium": 1.0, "curie": 2.0})
    >>> index.put(2, {"curie": 1.0})
    >>> index.search(["radium"], 5)[0]
    array([1])
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise StoreError(f"BM25 needs k1 ≥ 0 and 0 ≤ b ≤ 1, not k1={k1}, b={b}")
        self.k1, self.b = k1, b
        self._lock = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self._terms: dict[str, int] = {}
        self._free: list[int] = []  # term numbers whose term no document holds any more
        self._df: list[int] = []
        self._slots_of: list[bytearray] = []  # by term: slots, ascending
        self._tf_of: list[bytearray] = []
        self._slot: dict[int, int] = {}  # id -> slot
        self._forward: list[bytes | None] = []  # by slot: int32 term numbers; None when dead
        self._ids = np.empty(64, np.int64)
        self._length = np.zeros(64, np.float32)
        self._live = np.zeros(64, np.float32)
        self._total = 0.0

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, key: int, counts: Mapping[str, float]) -> None:
        """Insert or replace a document: term → weighted frequency."""
        with self._lock:
            self.delete((key,))
            slot = len(self._forward)
            if slot == len(self._ids):
                self._grow()
            numbers = array("i")
            terms, df, slots_of, tf_of = self._terms, self._df, self._slots_of, self._tf_of
            raw = _INT.pack(slot)
            for term, count in counts.items():
                number = terms.get(term)
                if number is None:
                    number = self._new_term(term)
                numbers.append(number)
                df[number] += 1
                slots_of[number] += raw
                tf_of[number] += _FLOAT.pack(count)
            length = float(np.float32(sum(counts.values())))
            self._ids[slot], self._length[slot], self._live[slot] = key, length, 1.0
            self._forward.append(numbers.tobytes())
            self._slot[key] = slot
            self._total += length

    def _new_term(self, term: str) -> int:
        if self._free:
            number = self._free.pop()
        else:
            number = len(self._df)
            self._df.append(0)
            self._slots_of.append(bytearray())
            self._tf_of.append(bytearray())
        self._terms[term] = number
        return number

    def _grow(self) -> None:
        more = len(self._ids)
        self._ids = np.concatenate([self._ids, np.empty(more, np.int64)])
        self._length = np.concatenate([self._length, np.zeros(more, np.float32)])
        self._live = np.concatenate([self._live, np.zeros(more, np.float32)])

    def delete(self, keys: Iterable[int]) -> None:
        """Delete; unknown ids are no error."""
        with self._lock:
            df = self._df
            for key in keys:
                slot = self._slot.pop(key, None)
                if slot is None:
                    continue
                numbers = self._forward[slot]
                assert numbers is not None
                for number in memoryview(numbers).cast("i"):
                    df[number] -= 1
                self._forward[slot] = None
                self._live[slot] = 0.0
                self._total -= float(self._length[slot])
            dead = len(self._forward) - len(self._slot)
            if dead > _MIN_DEAD and dead * 5 > len(self._forward):
                self._compact()

    def _compact(self) -> None:
        """Renumber the live slots in order and drop dead postings and unused terms: O(all postings).

        Amortised this is little, but one call at 100,000 passages takes some .4 s.
        """
        used = len(self._forward)
        alive = self._live[:used] > 0
        renumbered = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        for term, number in list(self._terms.items()):
            if self._df[number] == 0:
                del self._terms[term]
                self._free.append(number)
                self._slots_of[number], self._tf_of[number] = bytearray(), bytearray()
                continue
            slots = np.frombuffer(self._slots_of[number], np.int32)
            if self._df[number] != len(slots):
                kept = alive[slots]
                tf = np.frombuffer(self._tf_of[number], np.float32)[kept]
                slots = slots[kept]
                self._tf_of[number] = bytearray(tf.tobytes())
            self._slots_of[number] = bytearray(renumbered[slots].tobytes())
        self._forward = [numbers for numbers in self._forward if numbers is not None]
        count = len(self._forward)
        for column in (self._ids, self._length):
            column[:count] = column[:used][alive]
        self._live[:count], self._live[count:] = 1.0, 0.0
        self._slot = {key: slot for slot, key in enumerate(self._ids[:count].tolist())}

    # -- reads --------------------------------------------------------------------------------------------------------
    def search(self, query: Iterable[str], k: int, allow: npt.ArrayLike | None = None) -> tuple[Ids, Floats]:
        """Return at most k (id, score), best first, ties by id; scores > 0. A repeated query term counts again."""
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}")
        with self._lock:
            scores = self.scores(query)
            if allow is not None:
                slots_of = self._slot
                chosen = [s for key in np.asarray(allow).tolist() if (s := slots_of.get(key)) is not None]
                mask = np.zeros_like(scores)
                mask[chosen] = 1.0
                scores *= mask
            if not len(scores):
                return np.empty(0, np.int64), np.empty(0, np.float32)
            slots = best_slots(scores, k)
            slots = slots[scores[slots] > 0]
            found, best = self._ids[slots], scores[slots]
            order = np.lexsort((found, -best))[:k]
            return found[order], best[order]

    def scores(self, query: Iterable[str]) -> Floats:
        """Return the score of every slot, ``(slots,) float32``; 0 where dead or without any term."""
        repeats = self._repeats(query)
        scores = np.zeros(len(self._forward), np.float32)
        if repeats:
            norm = self._norm()
            for number, times in repeats.items():
                slots, part = self._part(number, times, norm)
                scores[slots] += part
            scores *= self._live[: len(scores)]
        return scores

    def term_scores(self, query: Iterable[str]) -> tuple[list[str], Floats]:
        """Return the distinct terms that occur, and what each gives each slot, ``(terms, slots) float32``.

        The sum over some rows is the score of a question of these terms: many questions, one look at the postings.
        """
        asked = list(query)
        repeats = self._repeats(asked)
        names = {number: term for term in asked if (number := self._terms.get(term)) in repeats}
        scores = np.zeros((len(repeats), len(self._forward)), np.float32)
        if repeats:
            norm = self._norm()
            for row, (number, times) in enumerate(repeats.items()):
                slots, part = self._part(number, times, norm)
                scores[row, slots] = part
            scores *= self._live[: scores.shape[1]]
        return [names[number] for number in repeats], scores

    def slots(self, keys: Iterable[int]) -> npt.NDArray[np.intp]:
        """Return the slots of documents; -1 for unknown ids."""
        get = self._slot.get
        return np.array([get(key, -1) for key in keys], np.intp)

    def holds(self, slots: npt.NDArray[np.intp], keys: Ids) -> npt.NDArray[np.bool_]:
        """Return whether these documents have these slots (< 0: none)."""
        inside = (slots >= 0) & (slots < len(self._forward))
        at = np.where(inside, slots, 0)
        held: npt.NDArray[np.bool_] = inside & (self._ids[at] == keys) & (self._live[at] > 0)
        return held

    def slot(self, key: int) -> int:
        """Return the slot of one document; -1 for an unknown id."""
        return self._slot.get(key, -1)

    def ids(self) -> Ids:
        """Return the id at every slot, those of dead ones included."""
        return self._ids[: len(self._forward)]

    def _repeats(self, query: Iterable[str]) -> dict[int, int]:
        """Numbers of the terms that occur, with how often they are asked."""
        repeats: dict[int, int] = {}
        for term in query:
            number = self._terms.get(term)
            if number is not None and self._df[number]:
                repeats[number] = repeats.get(number, 0) + 1
        return repeats

    def _norm(self) -> Floats:
        used, count = len(self._forward), len(self._slot)
        average = self._total / count if self._total else 1.0
        norm = self._length[:used] * np.float32(self.k1 * self.b / average)
        norm += np.float32(self.k1 * (1 - self.b))
        return norm

    def _part(self, number: int, times: int, norm: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
        """Slots of a term, dead ones included, and what it gives them."""
        df, count = self._df[number], len(self._slot)
        weight = np.float32(times * math.log(1 + (count - df + 0.5) / (df + 0.5)) * (self.k1 + 1))
        slots = np.frombuffer(self._slots_of[number], np.int32).astype(np.intp)
        tf = np.frombuffer(self._tf_of[number], np.float32)
        part = norm.take(slots)
        part += tf
        np.divide(tf, part, out=part)
        part *= weight
        return slots, part

    def document_frequency(self, term: str) -> int:
        """Return in how many live documents the term occurs."""
        number = self._terms.get(term)
        return 0 if number is None else self._df[number]

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, key: int) -> bool:
        return key in self._slot

    # -- checkpoint ---------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write ``postings.safetensors`` and ``terms.msgpack``, compacted."""
        with self._lock:
            if len(self._forward) > len(self._slot):
                self._compact()
            rows = [(term, number) for term, number in self._terms.items() if self._df[number]]
            count = len(self._forward)
            arrays: dict[str, npt.NDArray[Any]] = {
                "ids": self._ids[:count],
                "length": self._length[:count],
                "df": np.array([self._df[number] for _, number in rows], np.int64),
                "slots": np.frombuffer(b"".join(self._slots_of[number] for _, number in rows), np.int32),
                "tf": np.frombuffer(b"".join(self._tf_of[number] for _, number in rows), np.float32),
            }
            save_file(arrays, folder / "postings.safetensors")
            (folder / "terms.msgpack").write_bytes(pack([term for term, _ in rows]))

    def load(self, folder: Path) -> None:
        arrays = load_file(folder / "postings.safetensors")
        terms = unpack((folder / "terms.msgpack").read_bytes(), list[str])
        with self._lock:
            self._clear()
            df, slots, tf = arrays["df"], arrays["slots"], arrays["tf"]
            ends = np.cumsum(df)
            for start, end in zip((ends - df).tolist(), ends.tolist(), strict=True):
                self._slots_of.append(bytearray(slots[start:end].tobytes()))
                self._tf_of.append(bytearray(tf[start:end].tobytes()))
            self._df = df.tolist()
            self._terms = {term: number for number, term in enumerate(terms)}
            count = len(arrays["ids"])
            numbers = np.repeat(np.arange(len(df), dtype=np.int32), df)[np.argsort(slots, kind="stable")]
            bounds = np.concatenate([[0], np.cumsum(np.bincount(slots, minlength=count))]).tolist()
            self._forward = [numbers[bounds[i] : bounds[i + 1]].tobytes() for i in range(count)]
            spare = np.zeros(64)
            self._ids = np.concatenate([arrays["ids"], spare.astype(np.int64)])
            self._length = np.concatenate([arrays["length"], spare.astype(np.float32)])
            self._live = np.concatenate([np.ones(count, np.float32), spare.astype(np.float32)])
            self._slot = {key: slot for slot, key in enumerate(arrays["ids"].tolist())}
            self._total = float(arrays["length"].astype(np.float64).sum())
