"""Approximate nearest neighbours that take inserts, updates and deletes at full speed: layers over FAISS.

Writes go to a small growing buffer that is searched exactly; full buffers wait, frozen, until a background merge puts
them into immutable inverted lists (float16). Up to ``exact_rows`` rows there is only the buffer, and every answer is
exact. The shape is FreshDiskANN's (arXiv 2105.09613); why, and what was measured: docs/explanation/vectors.md.

Readers take no lock and wait for nothing. A search sees every write that ended before it began, never a deleted id, no
id twice, and of an updated id the newest vector.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from streamfold.core.errors import StoreError
from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors._checks import checked_filter, checked_ids, checked_k, unit_vectors
from streamfold.core.stores.vectors.abc import VectorStats
from streamfold.core.stores.vectors.choose import choose_kind
from streamfold.core.stores.vectors.files import restore_layers, save_layers
from streamfold.core.stores.vectors.layers import AnySegment, Layers, View
from streamfold.core.stores.vectors.replica import MakeReplica, on_gpu
from streamfold.core.stores.vectors.segment import Coarse, IvfSegment, one_thread
from streamfold.core.stores.vectors.single import nearest
from streamfold.core.stores.vectors.upkeep import Upkeep

Kind = Literal["ivf-fp16", "ivf-sq8", "hnsw", "auto"]

_TRIES = 8
_KICK_EVERY = 1024
_READ_PER_RESULT = 8
"""Rows read at least per result: nprobe is tuned for k around 10, a k of 1,000 needs more lists."""
_FLOAT16_MAX = 65_504
_SPLIT, _LIFT = np.array(8193, np.float32), np.array(0.75, np.float32)  # arrays: faster than scalars beside one row
_WAITING_ROWS = 131_072
"""Frozen rows at which writers wait for the merges: every one costs each search time and memory."""


class LayeredVectors:
    """Vectors by id under inner product, searched approximately, for streams.

    Insert, update and delete cost O(dim) and take effect at once. A search costs about O((nlist + nprobe · N/nlist) ·
    dim), N rows in nlist = O(√N) lists; with ``allow`` it widens as the filter narrows, and is exact where the filter
    leaves few rows. Rows are kept in float16 (``ivf-sq8``: 8 bits).

    Parameters
    ----------
    dim : length of each vector.
    normalize : scale rows and queries to length one, so that scores are cosines.
    kind : ``ivf-fp16``; ``ivf-sq8`` (half the memory, less exact scores); ``hnsw`` (slow to build, for what is mostly
        read); ``auto`` chooses by size and by reads per write.
    exact_rows : rows up to which everything is searched exactly.
    growing_rows : rows of the growing buffer above that; None: N/128 within 512 … 2048.
    segment_rows : cap of a segment, so that no rewrite copies more.
    recall : the recall@k that ``nprobe`` is tuned to.
    nprobe : lists (``hnsw``: candidates) per search; None: tuned.
    probe_every : one of so many queries is answered exactly, too, in the background; 0: none.
    background : merge in a thread; False: only in :meth:`maintain`.
    seed : of the training's sample.
    gpu : answer from copies of the segments on a GPU (``StoreError`` where FAISS sees none).
    replicate : makes such copies, in place of ``gpu``.

    Examples
    --------
    >>> index = LayeredVectors(2)
    >>> index.upsert(np.array([7, 8]), np.array([[1, 0], [1, 1]], np.float32))
    >>> index.search(np.array([[2, 0]], np.float32), 3)[0]
    array([[ 7,  8, -1]])
    """

    def __init__(
        self,
        dim: int,
        normalize: bool = True,
        *,
        kind: Kind = "ivf-fp16",
        exact_rows: int = 16_384,
        growing_rows: int | None = None,
        segment_rows: int = 262_144,
        recall: float = 0.95,
        nprobe: int | None = None,
        probe_every: int = 500,
        background: bool = True,
        seed: int = 0,
        gpu: bool = False,
        replicate: MakeReplica | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise StoreError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        if not 0 < recall <= 1:
            raise StoreError(f"recall must be above 0 and at most 1, not {recall}")
        for name, value, least in (
            ("dim", dim, 1), ("exact_rows", exact_rows, 1), ("growing_rows", growing_rows, 1),
            ("segment_rows", segment_rows, 1), ("nprobe", nprobe, 1), ("probe_every", probe_every, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise StoreError(f"{name} must be at least {least}, not {value}")
        self.dim = dim
        self.normalize = normalize
        self.kind = kind
        self._probe_every = probe_every
        self._background = background
        self._reads = 0
        self._layers = Layers(dim, exact_rows, growing_rows, on_gpu() if gpu else replicate)
        self._upkeep = Upkeep(
            self._layers,
            self._top,
            kind=self._chosen,
            segment_rows=segment_rows,
            recall=recall,
            nprobe=nprobe,
            background=background,
            seed=seed,
        )
        if kind == "hnsw" and nprobe is None:
            self._upkeep.nprobe = 64

    def _chosen(self) -> str:
        if self.kind != "auto":
            return self.kind
        return choose_kind(len(self._layers.map), reads=self._reads, writes=self._layers.written)

    # -- writes -------------------------------------------------------------------------------------------------------
    def upsert(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Insert or replace ``ids (n,)``, ``vectors (n, dim)``; the last of equal ids wins. Raises ``StoreError``."""
        keys = checked_ids(ids)
        if not len(keys):
            return
        rows = unit_vectors(vectors, self.dim, normalize=self.normalize)
        if len(keys) != len(rows):
            raise StoreError(f"{len(keys)} ids for {len(rows)} vectors")
        rows = self._rounded(rows if self.normalize else rows.copy())
        layers = self._layers
        if len(keys) == 1:
            with layers.lock:
                froze = layers.put1(int(keys[0]), rows[0])
        else:
            distinct, last = np.unique(keys[::-1], return_index=True)
            if len(distinct) < len(keys):
                chosen = len(keys) - 1 - last
                keys, rows = keys[chosen], rows[chosen]
            with layers.lock:
                froze = layers.put(keys, rows)
        if froze:
            self._upkeep.kick()
            if self._background and sum(b.count for b in layers.view.buffers[:-1]) > _WAITING_ROWS:
                self._upkeep.wait()

    def _rounded(self, rows: Floats) -> Floats:
        """Round to what float16 can hold, in place, in float32 (Dekker, DOI 10.1007/BF01397083): 5 × numpy's casts.

        Multiplying by 2¹³ + 1 and subtracting leaves 11 significant bits; adding and subtracting 3/4 leaves multiples
        of 2⁻²⁴, which changes only what is subnormal in float16.
        """
        scaled = np.multiply(rows, _SPLIT)
        np.subtract(scaled, rows, rows)
        np.subtract(scaled, rows, rows)
        np.add(rows, _LIFT, rows)
        np.subtract(rows, _LIFT, rows)
        if not self.normalize and np.abs(rows).max(initial=0) > _FLOAT16_MAX:
            raise StoreError("vectors are kept in float16: no member may exceed 65,504; normalise or scale them")
        return rows

    def delete(self, ids: npt.ArrayLike) -> None:
        """Delete; unknown ids are no error."""
        keys = checked_ids(ids)
        layers = self._layers
        with layers.lock:
            before = layers.written
            if len(keys) == 1:
                layers.delete1(int(keys[0]))
            elif len(keys):
                layers.delete(np.unique(keys))
            due = layers.written // _KICK_EVERY > before // _KICK_EVERY
        if due:
            self._upkeep.kick()

    # -- reads --------------------------------------------------------------------------------------------------------
    def search(self, queries: npt.ArrayLike, k: int, allow: npt.ArrayLike | None = None) -> tuple[Ids, Floats]:
        """``queries (m, dim)`` → ids ``(m, k)`` and scores, best first; −1 and −∞ where fewer exist.

        ``allow``: the ids that may be found, as ids or as a Boolean mask indexed by id (ids beyond its end may not).
        """
        k = checked_k(k)
        rows = unit_vectors(queries, self.dim, normalize=self.normalize)
        if not len(rows):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        if allow is not None:
            mask, keys = checked_filter(allow)
            return self._filtered(rows, k, mask, keys)
        if self._probe_every and self._layers.view.segments:
            before = self._reads
            self._reads = before + len(rows)  # threads may lose a count: it only sets a pace
            if self._reads // self._probe_every > before // self._probe_every:
                which = self._reads % len(rows)
                self._upkeep.ask_probe(rows[which : which + 1].copy(), k)
        if len(rows) == 1 and (found := nearest(self._layers, rows, k, self._probes)) is not None:
            return found
        return self._top(rows, k, False)

    def _probes(self, coarse: Coarse, k: int, rows_held: int) -> int:
        """Lists to search for k results in so many rows."""
        nlist: int = coarse.nlist
        return min(max(self._upkeep.nprobe, -(-_READ_PER_RESULT * k * nlist // max(1, rows_held))), nlist)

    def _top(
        self, rows: Floats, k: int, everywhere: bool, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Ids, Floats]:
        one_thread()
        layers = self._layers
        for _ in range(_TRIES):
            found = self._once(rows, k, everywhere, mask)
            if found is not None:
                break
        else:
            with layers.lock:  # writers were faster every time: let them wait once
                found = self._once(rows, k, everywhere, mask)
            assert found is not None
        if not everywhere and mask is None and (found[0][:, -1] < 0).any() and len(self) >= k:
            return self._top(rows, k, True)  # the probed lists hold fewer than k rows
        return found

    def _once(
        self, rows: Floats, k: int, everywhere: bool, mask: npt.NDArray[np.bool_] | None
    ) -> tuple[Ids, Floats] | None:
        """Search all layers; None when a swap or an update in between may have hidden or doubled an id."""
        layers = self._layers
        view = layers.view
        parts = self._segments(view.segments, rows, k, everywhere, mask)
        now = layers.view  # what moved on meanwhile is in newer buffers: they are read after the segments
        if now.segments is not view.segments:
            return None
        for buffer in now.buffers:
            part = buffer.top(rows, k, mask, None)
            if part is not None:
                parts.append(part)
        if layers.view is not now:
            return None
        return _best(parts, len(rows), k)

    def _segments(
        self,
        segments: tuple[AnySegment, ...],
        rows: Floats,
        k: int,
        everywhere: bool,
        mask: npt.NDArray[np.bool_] | None,
        slots: Callable[[int], Ids | None] | None = None,
    ) -> list[tuple[Floats, Ids]]:
        parts = []
        coarse: Coarse | None = None
        rows_held = sum(segment.live for segment in segments)
        for segment in segments:
            chosen = None
            if slots is not None and (chosen := slots(segment.number)) is None:
                continue
            if isinstance(segment, IvfSegment):
                if segment.coarse is not coarse:
                    coarse = segment.coarse
                    near, lists = coarse.assign(
                        rows, coarse.nlist if everywhere else self._probes(coarse, k, rows_held)
                    )
                part = segment.top(rows, k, near, lists, mask, chosen)
            elif everywhere:
                part = segment.everything(rows, k)
            else:
                part = segment.top(rows, k, self._upkeep.nprobe, mask, chosen)
            if part is not None:
                parts.append(part)
        return parts

    def _filtered(
        self, rows: Floats, k: int, mask: npt.NDArray[np.bool_] | None, keys: Ids | None
    ) -> tuple[Ids, Floats]:
        if keys is None:
            return self._top(rows, k, False, mask)
        one_thread()
        layers = self._layers
        for attempt in range(_TRIES + 1):
            if attempt == _TRIES:
                layers.lock.acquire()
            try:
                moved = layers.moved
                view, slots = layers.locate(keys)
                parts = self._segments(view.segments, rows, k, False, None, slots.get)
                for buffer in view.buffers:
                    if (chosen := slots.get(buffer.number)) is not None:
                        part = buffer.top(rows, k, None, np.unique(chosen))
                        if part is not None:
                            parts.append(part)
                if layers.moved == moved and (found := _best(parts, len(rows), k)) is not None:
                    return found
            finally:
                if attempt == _TRIES:
                    layers.lock.release()
        raise AssertionError("unreachable: under the lock nothing moves")

    def __len__(self) -> int:
        return len(self._layers.map)

    def __contains__(self, key: int) -> bool:
        with self._layers.lock:
            return self._layers.map.get1(int(key)) >= 0

    def export(self) -> tuple[Ids, Floats]:
        """All ids, ascending, and their rows as stored: ``(n,) int64``, ``(n, dim) float32``; copies."""
        with self._layers.lock:
            segments, buffers = self._layers.view
            ids, rows = [], []
            for segment in segments:
                for slots, part in segment.parts():
                    ids.append(segment.ids[slots])
                    rows.append(part)
            for buffer in buffers:
                slots = buffer.live_slots()
                ids.append(buffer.ids[slots])
                rows.append(buffer.matrix[slots])
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids)
        return all_ids[order], np.concatenate(rows)[order]

    # -- upkeep -------------------------------------------------------------------------------------------------------
    def maintain(self, everything: bool = False) -> None:
        """Do what is due (merges, compactions, retraining, probes) in the calling thread.

        ``everything``: merge the growing buffer as well, if there are segments, and drop all dead rows.
        """
        self._upkeep.run()
        if everything and self._layers.view.segments:
            with self._layers.lock:
                self._layers.freeze()
            self._upkeep.run(everything)

    def retrain(self) -> None:
        """Train new centroids now, in the calling thread."""
        self._upkeep.ask_retrain()
        self._upkeep.run()

    def wait(self) -> None:
        """Return when the background work is done."""
        self._upkeep.wait()

    @property
    def nprobe(self) -> int:
        return self._upkeep.nprobe

    @nprobe.setter
    def nprobe(self, lists: int) -> None:
        self._upkeep.nprobe = max(1, int(lists))

    def stats(self) -> VectorStats:
        layers, upkeep = self._layers, self._upkeep
        view: View = layers.view
        coarse = layers.coarse
        largest = max((s for s in view.segments if isinstance(s, IvfSegment)), key=lambda s: s.live, default=None)
        held = sum(part.nbytes for part in (*view.segments, *view.buffers)) + layers.map.nbytes
        return VectorStats(
            rows=len(layers.map),
            dead=sum(s.dead for s in view.segments) + sum(b.dead for b in view.buffers),
            growing=view.buffers[-1].count,
            frozen=sum(b.count for b in view.buffers[:-1]),
            segments=tuple(s.live for s in view.segments),
            kind=self._chosen() if view.segments else "exact",
            nlist=coarse.nlist if coarse else 0,
            nprobe=upkeep.nprobe,
            imbalance=largest.imbalance if largest else 0.0,
            recall=upkeep.recall,
            bytes=held + (coarse.nlist * self.dim * 4 if coarse else 0),
            **upkeep.counts._asdict(),
        )

    # -- files --------------------------------------------------------------------------------------------------------
    def snapshot(self, path: Path) -> None:
        """Write a folder: files, then the manifest. Segments that a former snapshot wrote are linked, not written."""
        save_layers(self._layers, Path(path), dim=self.dim, normalize=self.normalize, nprobe=self._upkeep.nprobe)

    def restore(self, path: Path, verify: bool = True) -> None:
        """Replace the content by a snapshot's; segments are memory-mapped.

        Raises ``CorruptCheckpoint`` that names a file that is missing or changed (``verify=False``: the caller has
        checked them), ``StoreError`` for a snapshot of another dimension or normalisation; nothing is changed then.
        """
        restored = restore_layers(Path(path), dim=self.dim, normalize=self.normalize, verify=verify)
        with self._upkeep.turn, self._layers.lock:  # no merge of the old layers may end in the new ones
            self._layers.load(restored.segments, restored.coarse)
            if len(restored.ids):
                self._layers.put(restored.ids, restored.rows)
            self._upkeep.reset()
            if not self._upkeep.is_fixed:
                self._upkeep.nprobe = restored.nprobe
        self._upkeep.kick()

    @property
    def is_lossless(self) -> bool:
        """Whether a row's stored form does not depend on when it was merged."""
        return self.kind != "ivf-sq8"

    def close(self) -> None:
        """Stop the background work; the index can still be read."""
        self._upkeep.close()


def _best(parts: list[tuple[Floats, Ids]], m: int, k: int) -> tuple[Ids, Floats] | None:
    """The best k of all parts per query; None where an id came twice (an update was seen half-way)."""
    if not parts:
        return np.full((m, k), -1, np.int64), np.full((m, k), -np.inf, np.float32)
    scores = np.concatenate([part[0] for part in parts], 1) if len(parts) > 1 else parts[0][0]
    ids = np.concatenate([part[1] for part in parts], 1) if len(parts) > 1 else parts[0][1]
    if m == 1:
        order = np.argsort(-scores[0], kind="stable")[:k]
        best_scores, best_ids = scores[:, order], ids[:, order]
        if best_scores[0, -1] == -np.inf:
            best_ids[best_scores == -np.inf] = -1
        listed = [i for i in best_ids[0].tolist() if i >= 0]
        if len(set(listed)) < len(listed):
            return None
    else:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best_ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
        best_ids = np.where(best_scores == -np.inf, -1, best_ids)
        sorted_ids = np.sort(best_ids, axis=1)
        if ((sorted_ids[:, 1:] == sorted_ids[:, :-1]) & (sorted_ids[:, 1:] >= 0)).any():
            return None
    missing = k - best_ids.shape[1]
    if missing > 0:
        best_ids = np.pad(best_ids, ((0, 0), (0, missing)), constant_values=-1)
        best_scores = np.pad(best_scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return best_ids, best_scores
