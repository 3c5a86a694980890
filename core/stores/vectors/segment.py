"""The immutable layers: a FAISS index over internal slots, a slot → id array, and a bitmap of the live slots.

Nothing of a segment changes but single bits, cleared in the bitmap that FAISS's selector reads: the next search sees
them. Everything else (adding, really removing, combining) makes a new segment from a private copy, which the writer
then puts in the old one's place. A slot keeps its number when a segment is extended or has another appended.

Vectors were rounded to float16 on their way in, and are encoded without residuals: a row has the same score in every
layer, before and after every merge (``ivf-sq8`` excepted).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors.growing import allowed_by
from streamfold.core.stores.vectors.replica import MakeReplica, Replica, spare, without_dead

Bools = npt.NDArray[np.bool_]

_EXACT_BELOW = 16_384
"""A filter that leaves no more rows than this in a segment is answered from all its lists."""
_CODES = {"ivf-fp16": faiss.ScalarQuantizer.QT_fp16, "ivf-sq8": faiss.ScalarQuantizer.QT_8bit}
_HNSW_LINKS, _HNSW_BUILD = 16, 100
_thread = threading.local()


def one_thread() -> None:
    """FAISS's own threads only disturb a server's: one per calling thread (the setting is per thread)."""
    if not hasattr(_thread, "set"):
        faiss.omp_set_num_threads(1)
        _thread.set = True


class Coarse:
    """What the segments of one training share: the centroids and the encoder.

    Parameters
    ----------
    centroids : ``(nlist, dim) float32``, unit length.
    kind : ``ivf-fp16`` or ``ivf-sq8``.
    sample : ``(n, dim) float32``: what sq8's ranges are trained with.
    trained_rows : live rows when trained.
    former : the training that this one replaces.
    """

    def __init__(
        self, centroids: Floats, kind: str, sample: Floats, trained_rows: int, former: Coarse | None = None
    ) -> None:
        one_thread()
        self.nlist, self.dim = centroids.shape
        self.kind = kind
        self.trained_rows = trained_rows
        self.imbalance = 0.0
        """Of the lists right after the training; 0 until known."""
        self.tuned = 0
        """The nprobe that was found right after the training; 0 until known."""
        self.quantizer = faiss.IndexFlatIP(self.dim)
        self.quantizer.add(np.ascontiguousarray(centroids, dtype=np.float32))
        self._ranges: Floats | None = None
        if kind == "ivf-sq8":
            first = self.empty()
            first.sq.rangestat_arg = 0.1  # later rows may lie somewhat outside the sample's ranges
            first.train(np.ascontiguousarray(sample))
            before = former._ranges if former is not None else None
            self._ranges = _widened(faiss.vector_to_array(first.sq.trained), sample, before)
        self._everything = np.arange(self.nlist, dtype=np.int64)[None]

    @classmethod
    def of(cls, index: Any, kind: str, trained_rows: int) -> Coarse:
        """Take over the centroids of an index that was read from a file."""
        quantizer = faiss.downcast_index(index.quantizer)
        centroids = quantizer.reconstruct_n(0, quantizer.ntotal)
        made = cls(centroids, "ivf-fp16", centroids, trained_rows)
        made.kind = kind
        made._ranges = faiss.vector_to_array(index.sq.trained) if kind == "ivf-sq8" else None
        return made

    def empty(self) -> Any:
        index = faiss.IndexIVFScalarQuantizer(
            self.quantizer, self.dim, self.nlist, _CODES[self.kind], faiss.METRIC_INNER_PRODUCT, False
        )
        if self.kind == "ivf-fp16":
            index.is_trained = True
        elif self._ranges is not None:
            faiss.copy_array_to_vector(self._ranges, index.sq.trained)
            index.is_trained = True
        return index

    def assign(self, queries: Floats, nprobe: int) -> tuple[Floats, Ids]:
        if nprobe >= self.nlist:
            lists = np.repeat(self._everything, len(queries), axis=0)
            return np.zeros(lists.shape, np.float32), lists
        m, pointer = len(queries), faiss.swig_ptr
        near, lists = np.empty((m, nprobe), np.float32), np.empty((m, nprobe), np.int64)
        self.quantizer.search_c(m, pointer(queries), nprobe, pointer(near), pointer(lists))
        return near, lists


def _widened(ranges: Floats, sample: Floats, former: Floats | None) -> Floats:
    """Ranges ``(2 · dim,)`` (lower ends, widths) that hold what comes, too, and are left alone while they do.

    What lies outside is clipped; rows after a drift, or after a training on few rows, do. So they reach at least 6 ×
    the members' root mean square about zero (but no member is longer than its row), and never shrink: rows that are
    moved to lists of the same ranges keep their codes.
    """
    squares = np.einsum("ij,ij->i", sample, sample)
    most = float(squares.max()) ** 0.5
    reach = min(6 * float(squares.mean() / sample.shape[1]) ** 0.5, most)
    low, width = np.split(ranges, 2)
    lowest, highest = np.clip(low, -most, -reach), np.clip(low + width, reach, most)
    if former is not None:
        low, width = np.split(former, 2)
        holds = (sample.min(0) >= low) & (sample.max(0) <= low + width)
        lowest = np.where(holds, low, np.minimum(lowest, low))
        highest = np.where(holds, low + width, np.maximum(highest, low + width))
    return np.concatenate([lowest, highest - lowest]).astype(np.float32)


class Segment:
    """What both kinds share: slots, ids, and which are alive."""

    def __init__(self, number: int, index: Any, ids: Ids, alive: Bools) -> None:
        self.number = number
        self.index = index
        self.ids = ids
        self._id = ids.data
        self.set_alive(alive)
        self.file: SavedFile | None = None
        """Where the index is on disk, once a snapshot wrote it or a restore read it."""
        self.viewed = False
        """Whether the index lies in a memory-mapped file."""

    # -- live slots ---------------------------------------------------------------------------------------------------
    def set_alive(self, alive: Bools) -> None:
        self.bits = np.packbits(alive, bitorder="little")
        self._bit = self.bits.data
        self._selector = faiss.IDSelectorBitmap(self.bits)
        self.live = int(np.count_nonzero(alive))
        self._params: dict[tuple[int, bool], Any] = {}

    def alive(self) -> Bools:
        return np.unpackbits(self.bits, count=len(self.ids), bitorder="little").view(np.bool_)

    def kill1(self, slot: int) -> None:
        self._bit[slot >> 3] &= ~(1 << (slot & 7)) & 0xFF
        self.live -= 1

    def kill(self, slots: Ids) -> None:
        np.bitwise_and.at(self.bits, slots >> 3, (~(np.uint8(1) << (slots & 7).astype(np.uint8))).astype(np.uint8))
        self.live -= len(slots)

    @property
    def dead(self) -> int:
        """Rows that the index still holds but no search returns."""
        return int(self.index.ntotal) - self.live

    @property
    def nbytes(self) -> int:
        return self._row_bytes() * int(self.index.ntotal) + self.ids.nbytes + self.bits.nbytes

    def _row_bytes(self) -> int:
        raise NotImplementedError

    # -- search -------------------------------------------------------------------------------------------------------
    def _selection(self, mask: Bools | None, slots: Ids | None) -> tuple[npt.NDArray[np.uint8], int]:
        """Bitmap of the live slots that a filter allows, and how many they are."""
        if slots is not None:
            allowed = np.zeros(len(self.ids), np.bool_)
            allowed[slots] = True
        else:
            assert mask is not None
            allowed = allowed_by(mask, self.ids) & (self.ids >= 0)
        bits = np.packbits(allowed, bitorder="little") & self.bits
        return bits, int(np.bitwise_count(bits).sum())

    def _answer(self, scores: Floats, slots: Ids) -> tuple[Floats, Ids]:
        if (slots[:, -1] < 0).any():  # best first: what is missing is at the end
            scores[slots < 0] = -np.inf
            return scores, np.where(slots < 0, -1, self.ids[slots])
        return scores, self.ids[slots]


class IvfSegment(Segment):
    """Inverted lists over shared centroids (IndexIVFScalarQuantizer, inner product, no residuals)."""

    def __init__(self, number: int, coarse: Coarse, index: Any, ids: Ids, alive: Bools) -> None:
        super().__init__(number, index, ids, alive)
        self.coarse = coarse
        self.held = int(index.ntotal)
        self.replica: Replica | None = None

    @property
    def dead(self) -> int:
        return self.held - self.live

    def _row_bytes(self) -> int:
        return int(self.index.code_size) + 8

    @cached_property
    def imbalance(self) -> float:
        """How uneven the lists are: 1 if all are equal. O(nlist), once: the lists of a segment do not change."""
        return float(self.index.invlists.imbalance_factor())

    def top(
        self, queries: Floats, k: int, near: Floats, lists: Ids, mask: Bools | None = None, slots: Ids | None = None
    ) -> tuple[Floats, Ids] | None:
        """Scores and ids ``(m, k)`` of the best in the given lists, best first; −∞ and −1 where fewer are.

        A filter widens the search: to all lists where it leaves few rows, else by the share that it leaves.
        """
        nprobe = lists.shape[1]
        if mask is None and slots is None:
            if self.replica is not None:
                copied = self.replica.top(queries, k, nprobe, self.bits, self.dead)
                if copied is not None:
                    return self._answer(*copied)
            dead = self.dead
            params = self._plain(nprobe, selected=False)
            if not dead:
                return self._answer(*self._scan(queries, k, near, lists, params))
            # A scan without a selector is up to twice as fast: fetch some more and leave out the dead.
            fetched = self._scan(queries, spare(k, dead, self.held), near, lists, params)
            alive = without_dead(*fetched, self.bits, k)
            if alive is not None:
                return self._answer(*alive)
            params = self._plain(nprobe, selected=True)
        else:
            bits, count = self._selection(mask, slots)
            if not count:
                return None
            wider = self.coarse.nlist if count <= _EXACT_BELOW else -(-nprobe * self.live // count)
            nprobe = min(wider, self.coarse.nlist)
            near, lists = self.coarse.assign(queries, nprobe)
            params = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorBitmap(bits))
        return self._answer(*self._scan(queries, k, near, lists, params))

    def _scan(self, queries: Floats, k: int, near: Floats, lists: Ids, params: Any) -> tuple[Floats, Ids]:
        m = len(queries)
        scores, found = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        pointer = faiss.swig_ptr
        self.index.search_preassigned_c(
            m, pointer(queries), k, pointer(lists), pointer(near), pointer(scores), pointer(found), False, params
        )
        return scores, found

    def few(self, query: Floats, k: int, near: Floats, lists: Ids, found: list[tuple[float, int]]) -> float:
        """Append scores and ids of the best live rows for one query ``(1, dim)``: at least those of the best k.

        Returns a score: below it there may be more live ones than were appended.
        """
        dead = self.dead
        params = self._plain(lists.shape[1], selected=False)
        if not dead:
            scores, slots = self._scan(query, k, near, lists, params)
            ids = self._id
            found += [
                (s, ids[slot]) for s, slot in zip(scores[0].tolist(), slots[0].tolist(), strict=True) if slot >= 0
            ]
            return -np.inf
        scores, slots = self._scan(query, spare(k, dead, self.held), near, lists, params)
        score, ids, bit = -np.inf, self._id, self._bit
        for score, slot in zip(scores[0].tolist(), slots[0].tolist(), strict=True):
            if slot < 0:
                return -np.inf
            if bit[slot >> 3] >> (slot & 7) & 1:
                found.append((score, ids[slot]))
        return score

    def replicate(self, make: MakeReplica) -> None:
        """Answer from a copy of the index from now on, on a GPU as a rule."""
        self.replica = Replica(self.index, make)

    def _plain(self, nprobe: int, *, selected: bool) -> Any:
        key = (nprobe, selected)
        params = self._params.get(key)
        if params is None:
            selector = {"sel": self._selector} if selected else {}
            params = self._params[key] = faiss.SearchParametersIVF(nprobe=nprobe, **selector)
        return params

    # -- rows ---------------------------------------------------------------------------------------------------------
    def _list(self, number: int) -> tuple[Ids, npt.NDArray[np.uint8]]:
        lists, size = self.index.invlists, self.index.code_size
        n = lists.list_size(number)
        if not n:
            return np.empty(0, np.int64), np.empty((0, size), np.uint8)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), n)
        codes = faiss.rev_swig_ptr(lists.get_codes(number), n * size).reshape(n, size)
        return ids, codes

    def parts(self, at_least: int = 8192, share: float = 1.0, seed: int = 0) -> Iterator[tuple[Ids, Floats]]:
        """Live slots ``(n,)`` and their rows ``(n, dim)`` as stored, list by list; a random share of them."""
        alive, rng = self.alive(), np.random.default_rng(seed)
        slots: list[Ids] = []
        codes: list[npt.NDArray[np.uint8]] = []
        held = 0
        for number in range(self.coarse.nlist):
            ids, rows = self._list(number)
            chosen = np.flatnonzero(alive[ids])
            if share < 1:
                chosen = chosen[rng.random(len(chosen)) < share]
            slots.append(ids[chosen])
            codes.append(rows[chosen])
            held += len(chosen)
            if held and (held >= at_least or number == self.coarse.nlist - 1):
                yield np.concatenate(slots), self.index.sq.decode(np.concatenate(codes))
                slots, codes, held = [], [], 0
        if held:
            yield np.concatenate(slots), self.index.sq.decode(np.concatenate(codes))

    # -- making new ones ----------------------------------------------------------------------------------------------
    def extended(self, ids: Ids, rows: Floats) -> IvfSegment:
        """A copy without the dead rows and with more rows behind, these not yet alive."""
        one_thread()
        if self.viewed:
            index = self.coarse.empty()
            _copy_lists(self, index, np.arange(len(self.ids)))
        else:
            index = faiss.clone_index(self.index)  # with centroids of its own: 2 MB that the tail can bear
        if self.dead:
            index.remove_ids(faiss.IDSelectorNot(self._selector))
        start = len(self.ids)
        index.add_with_ids(rows, np.arange(start, start + len(ids)))
        return IvfSegment(
            self.number, self.coarse, index, np.concatenate([self.ids, ids]), np.zeros(start + len(ids), np.bool_)
        )


def new_segment(number: int, coarse: Coarse, ids: Ids, rows: Floats) -> IvfSegment:
    """A segment of these rows, none of them alive yet."""
    one_thread()
    index = coarse.empty()
    for start in range(0, len(rows), 16_384):
        block = np.ascontiguousarray(rows[start : start + 16_384])
        index.add_with_ids(block, np.arange(start, start + len(block)))
    return IvfSegment(number, coarse, index, ids, np.zeros(len(ids), np.bool_))


def combined(segments: Sequence[IvfSegment], number: int | None) -> tuple[IvfSegment, list[Ids]]:
    """One segment with the live rows of several of one training, none alive yet, and where each one's slots went.

    The first keeps its number and slots; with a ``number`` all rows get new slots without gaps instead. The second
    result maps each segment's slots to new ones (−1: dead, not taken over). O(rows) bytes copied, no distance computed.
    """
    one_thread()
    coarse = segments[0].coarse
    moves: list[Ids] = []
    start = 0
    for segment in segments:
        alive = segment.alive()
        to = start + (np.arange(len(alive)) if number is None else np.cumsum(alive) - 1)
        moves.append(np.where(alive, to, -1))
        start += len(alive) if number is None else int(np.count_nonzero(alive))
    ids = np.full(start, -1, np.int64)
    for segment, move in zip(segments, moves, strict=True):
        ids[move[move >= 0]] = segment.ids[move >= 0]
    index = coarse.empty()
    # Small ones first: a list that grows from n to n + m, m ≥ n, gets exactly the memory that it needs.
    for segment, move in sorted(zip(segments, moves, strict=True), key=lambda pair: pair[0].live):
        _copy_lists(segment, index, move)
    made = IvfSegment(segments[0].number if number is None else number, coarse, index, ids, np.zeros(start, np.bool_))
    return made, moves


def _copy_lists(segment: IvfSegment, index: Any, move: Ids) -> None:
    """Append a segment's entries to an index of the same centroids, at the slots that ``move`` says (−1: leave out)."""
    target, pointer, total = index.invlists, faiss.swig_ptr, 0
    for number in range(segment.coarse.nlist):
        ids, codes = segment._list(number)
        if not len(ids):
            continue
        slots = move[ids]
        if slots.min() < 0:
            kept = slots >= 0
            slots, codes = slots[kept], codes[kept]
        if len(slots):
            target.add_entries(number, len(slots), pointer(slots), pointer(codes))
            total += len(slots)
    index.ntotal += total


class HnswSegment(Segment):
    """A navigable small-world graph over float16 rows (IndexHNSWSQ): slow to build, for data that is mostly read."""

    def _row_bytes(self) -> int:
        return int(faiss.downcast_index(self.index.storage).code_size) + 4 * (2 * _HNSW_LINKS + 4)

    @classmethod
    def empty(cls, number: int, dim: int) -> HnswSegment:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_BUILD
        index.is_trained = True
        index.storage.is_trained = True
        return cls(number, index, np.empty(0, np.int64), np.empty(0, np.bool_))

    def top(
        self, queries: Floats, k: int, breadth: int, mask: Bools | None = None, slots: Ids | None = None
    ) -> tuple[Floats, Ids] | None:
        """As in :class:`IvfSegment`; ``breadth`` is efSearch. A filter that leaves few rows is answered exactly."""
        breadth = max(breadth, k)
        if mask is not None or slots is not None:
            bits, count = self._selection(mask, slots)
            if not count:
                return None
            if count <= _EXACT_BELOW:
                chosen = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
                return self._exact(queries, k, chosen)
            params = faiss.SearchParametersHNSW(
                efSearch=min(-(-breadth * self.live // count), len(self.ids)), sel=faiss.IDSelectorBitmap(bits)
            )
        else:
            key = (breadth, self.dead > 0)
            params = self._params.get(key)
            if params is None:
                selector = {"sel": self._selector} if key[1] else {}
                params = self._params[key] = faiss.SearchParametersHNSW(efSearch=breadth, **selector)
        scores, found = self.index.search(queries, k, params=params)
        return self._answer(scores, found)

    def everything(self, queries: Floats, k: int) -> tuple[Floats, Ids] | None:
        return self._exact(queries, k, np.flatnonzero(self.alive()))

    def _halves(self) -> npt.NDArray[np.float16]:
        storage = faiss.downcast_index(self.index.storage)
        codes = faiss.rev_swig_ptr(storage.codes.data(), storage.ntotal * storage.code_size)
        halves: npt.NDArray[np.float16] = codes.view(np.float16).reshape(storage.ntotal, -1)
        return halves

    def _exact(self, queries: Floats, k: int, slots: Ids) -> tuple[Floats, Ids] | None:
        if not len(slots):
            return None
        best: list[tuple[Floats, Ids]] = []
        for start in range(0, len(slots), 65_536):
            part = slots[start : start + 65_536]
            scores = queries @ self._halves()[part].astype(np.float32).T
            chosen = np.argpartition(-scores, min(k, len(part)) - 1, axis=1)[:, :k]
            best.append((np.take_along_axis(scores, chosen, 1), self.ids[part][chosen]))
        return np.concatenate([s for s, _ in best], 1), np.concatenate([i for _, i in best], 1)

    def parts(self, at_least: int = 8192, share: float = 1.0, seed: int = 0) -> Iterator[tuple[Ids, Floats]]:
        slots = np.flatnonzero(self.alive())
        if share < 1:
            slots = slots[np.random.default_rng(seed).random(len(slots)) < share]
        for start in range(0, len(slots), at_least):
            part = slots[start : start + at_least]
            yield part, self._halves()[part].astype(np.float32)

    def extended(self, ids: Ids, rows: Floats) -> HnswSegment:
        one_thread()
        index = faiss.clone_index(self.index) if len(self.ids) else self.empty(0, rows.shape[1]).index
        index.add(np.ascontiguousarray(rows))
        n = len(self.ids) + len(ids)
        return HnswSegment(self.number, index, np.concatenate([self.ids, ids]), np.zeros(n, np.bool_))


class SavedFile:
    """An index file that a snapshot wrote, held open: the next one links it, whatever it is called by then."""

    def __init__(self, path: os.PathLike[str] | str, digest: str, size: int) -> None:
        self.digest, self.size = digest, size
        self._fd = os.open(path, os.O_RDONLY)

    def link(self, path: os.PathLike[str] | str) -> bool:
        """Give the file one more name; False where that cannot be (another file system, all names gone)."""
        try:
            # Without a directory's descriptor os.link calls link(2), which links the symbolic link itself.
            os.link(f"/proc/self/fd/{self._fd}", path, src_dir_fd=self._fd, follow_symlinks=True)
        except OSError:
            return False
        return True

    def __del__(self) -> None:
        os.close(self._fd)
