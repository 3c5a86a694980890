"""What goes on behind the writes: merges, compactions, retraining, recall probes.

One worker at a time, a thread that starts when there is something to do and ends when nothing is left. Each step works
on private copies and ends with one short swap under the writer's lock, so that searches never wait and writes hardly.

- **Merge**: the rows of frozen buffers go to a copy of the tail, the newest and smallest segment.
- **Compact**: a full tail joins its neighbour once it has an eighth of its rows, as in a log-structured merge tree, so
  that a row is copied O(log N) times; a segment is written anew when 4 % of it are dead.
- **Retrain**: when there are 2.5 times the rows, the lists have become uneven, or probes miss the recall target: new
  centroids from a sample, then segment by segment moves over, with merges in between.
- **Probe**: some queries are answered again from all lists; what nprobe missed tunes it.

The shape is FreshDiskANN's (arXiv 2105.09613).
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors.layers import AnySegment, Layers, Taken
from streamfold.core.stores.vectors.segment import HnswSegment, IvfSegment, combined, new_segment, one_thread
from streamfold.core.stores.vectors.train import ROWS_PER_LIST, lists_for, train

log = logging.getLogger("streamfold.vectors")

_MERGE_ROWS = 65_536
_TAIL_BUFFERS = 8
_TRIM_ROWS = 8192
_RATIO = 8
"""A segment joins its older neighbour once it has this share of its rows: fewer segments to search, more copying."""
_DEAD = 24
"""A segment with one dead row to so many live ones is written anew: 15 ms per 100,000 rows, for 4 % of each scan."""
_WINDOW, _LEAST = 50, 10
"""Probes that are averaged, and how many at least before they change anything."""
_UNEVEN = 1.2
"""Times the imbalance right after a training: rows of the same kind leave it as it was, a drift does not."""
_GROWN = 2.5
"""So many times the rows of the last training ask for a new one: lists per √row go from 5 to 3.2 in between."""


class Counts(NamedTuple):
    """What was done since the start."""

    merges: int = 0
    compactions: int = 0
    retrains: int = 0
    probes: int = 0


class Upkeep:
    """Keeps the layers of one index in shape.

    Parameters
    ----------
    layers : what is kept.
    search : ``(queries, k, everywhere)`` → ids, scores: the index's own search, for probes and tuning.
    kind : ``ivf-fp16``, ``ivf-sq8`` or ``hnsw``.
    segment_rows : cap of one segment.
    recall : the target.
    nprobe : fixed, or None: tuned.
    background : work in a thread, else only in :meth:`run`.
    """

    def __init__(
        self,
        layers: Layers,
        search: Callable[[Floats, int, bool], tuple[Ids, Floats]],
        *,
        kind: Callable[[], str],
        segment_rows: int,
        recall: float,
        nprobe: int | None,
        background: bool,
        seed: int,
    ) -> None:
        self._layers = layers
        self._search = search
        self._kind = kind
        self._segment_rows = segment_rows
        self._target = recall
        self.is_fixed = nprobe is not None
        self._background = background
        self._seed = seed
        self._worker: threading.Thread | None = None
        self._merged = 0
        self.turn = threading.RLock()
        """Held by whoever works, the worker thread or a caller of :meth:`run`; taken before the layers' lock."""
        self._closed = False
        self.nprobe = nprobe or 16
        self.counts = Counts()
        self.reset()

    def reset(self) -> None:
        """Forget plans and measurements (the layers were replaced)."""
        self._retraining: Generator[None, None, None] | None = None
        self._wanted = False
        self._asked: deque[tuple[Floats, int]] = deque(maxlen=32)
        self._recalls: deque[float] = deque(maxlen=_WINDOW)

    # -- when ---------------------------------------------------------------------------------------------------------
    def kick(self) -> None:
        """Something may be to do."""
        if not self._background or self._closed:
            return
        with self._layers.lock:
            if self._worker is None and self.due():
                self._worker = threading.Thread(target=self._work, name="streamfold-vectors", daemon=True)
                self._worker.start()

    def due(self) -> bool:
        return bool(
            len(self._layers.view.buffers) > 1
            or self._asked
            or self._retraining is not None
            or self._retrain_due()
            or self._compaction() is not None
        )

    def _work(self) -> None:
        one_thread()
        while True:
            failed = False
            try:
                with self.turn:
                    going = not self._closed and self.step()
            except Exception:  # no memory, say: what is frozen stays searchable, and the next write tries again
                log.exception("vector_upkeep_failed")
                failed, going = True, False
                self._retraining = None
            with self._layers.lock:
                if not going and (failed or self._closed or not self.due()):
                    self._worker = None
                    return

    def run(self, everything: bool = False) -> None:
        """Do all that is due in the calling thread; ``everything``: drop each dead row, too."""
        with self.turn:
            while self.step():
                pass
            if everything:
                for number in [s.number for s in self._layers.view.segments if s.dead]:
                    self._compact([s for s in self._layers.view.segments if s.number == number])
                _trim()

    def wait(self) -> None:
        """Return when no work is under way and none is due."""
        while (worker := self._worker) is not None:
            worker.join()
        if self._background:
            self.run()

    def close(self) -> None:
        self._closed = True
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    def step(self) -> bool:
        """Do the most urgent thing; False when nothing is due."""
        one_thread()
        if len(self._layers.view.buffers) > 1:
            self._merge()
        elif self._retraining is not None:
            try:
                next(self._retraining)
            except StopIteration:
                self._retraining = None
        elif (plan := self._compaction()) is not None:
            self._compact(plan)
            del plan
            _trim()
        elif self._retrain_due():
            self._retraining = self._retrain()
        elif self._asked:
            self._probe()
        else:
            return False
        return True

    # -- merge --------------------------------------------------------------------------------------------------------
    def _merge(self) -> None:
        layers = self._layers
        taken: list[Taken] = []
        for buffer in layers.view.buffers[:-1]:
            taken.append(Taken(buffer, buffer.live_slots()))
            if sum(len(one.slots) for one in taken) >= _MERGE_ROWS:
                break
        ids = np.concatenate([one.ids for one in taken])
        rows = np.concatenate([one.rows for one in taken])
        tail: AnySegment | None = None
        new: AnySegment | None = None
        if self._kind() == "hnsw":
            tail = layers.view.segments[-1] if layers.view.segments else None
            if not isinstance(tail, HnswSegment):
                tail = None
            if len(ids):
                base = tail or HnswSegment.empty(layers.take_number(), layers.dim)
                new = base.extended(ids, rows)
        elif len(ids):
            if layers.coarse is None:
                _drain(self._first_training(rows))
            tail = self._tail(len(ids))
            if tail is None:
                assert layers.coarse is not None
                new = new_segment(layers.take_number(), layers.coarse, ids, rows)
            else:
                new = tail.extended(ids, rows)
        layers.merge(taken, tail, new)
        del tail, rows, taken
        self._count(merges=1)
        self._merged += len(ids)
        if self._merged >= _TRIM_ROWS:
            self._merged = 0
            _trim()
        if isinstance(new, IvfSegment):
            self._measure(new)

    def _first_training(self, rows: Floats) -> Generator[None, None, None]:
        total = max(len(self._layers.map), len(rows))
        lists = min(lists_for(total), max(1, len(rows) // 4))
        sample = self._sampled(rows, lists * ROWS_PER_LIST)
        self._layers.coarse = yield from train(sample, lists, kind=self._kind(), trained_rows=total, seed=self._seed)

    def _sampled(self, rows: Floats, most: int) -> Floats:
        if len(rows) <= most:
            return rows
        return rows[np.sort(np.random.default_rng(self._seed).choice(len(rows), most, replace=False))]

    @property
    def _tail_rows(self) -> int:
        """Slots up to which the newest segment takes rows: until it can join its neighbour, if that is to be."""
        least = _TAIL_BUFFERS * self._layers.growing_rows
        segments = self._layers.view.segments
        if len(segments) < 2:
            return least
        older, tail = segments[-2:]
        if not (isinstance(older, IvfSegment) and isinstance(tail, IvfSegment) and older.coarse is tail.coarse):
            return least
        share = -(-older.live // _RATIO)
        return max(least, share) if older.live + share <= self._segment_rows else least

    def _tail(self, more: int) -> IvfSegment | None:
        segments = self._layers.view.segments
        if not segments or more >= self._tail_rows:
            return None
        tail = segments[-1]
        fits = isinstance(tail, IvfSegment) and tail.coarse is self._layers.coarse and len(tail.ids) < self._tail_rows
        return tail if fits and isinstance(tail, IvfSegment) else None

    def _measure(self, segment: IvfSegment) -> None:
        """Remember how even the lists are, and tune nprobe, when a training's first segment is there."""
        coarse = segment.coarse
        if coarse.imbalance or segment.live < min(coarse.trained_rows, self._segment_rows) // 2:
            return
        coarse.imbalance = segment.imbalance
        if self.is_fixed:
            coarse.tuned = self.nprobe
            return
        coarse.tuned = self.nprobe = self._tuned(segment)
        self._recalls.clear()

    def _tuned(self, segment: IvfSegment) -> int:
        """The least nprobe that finds the target's share of the neighbours of some of the segment's own rows."""
        k, wanted, coarse = 10, 128, segment.coarse
        share = min(1.0, 4 * wanted / max(1, segment.live))
        rows = np.concatenate([rows for _, rows in segment.parts(share=share, seed=self._seed)])
        rows = np.ascontiguousarray(rows[:: max(1, len(rows) // wanted)])  # they come list by list
        every = segment.top(rows, k + 1, *coarse.assign(rows, coarse.nlist))
        assert every is not None
        truth = every[1][:, 1:]  # the first is the row itself
        nprobe = 4
        while nprobe < coarse.nlist:
            found = segment.top(rows, k + 1, *coarse.assign(rows, nprobe))
            assert found is not None
            if _share_found(truth, found[1]) >= self._target + 0.2 * (1 - self._target):
                break
            nprobe = -(-nprobe * 5 // 4)
        return int(min(nprobe, coarse.nlist))

    # -- compact ------------------------------------------------------------------------------------------------------
    def _compaction(self) -> list[AnySegment] | None:
        """The segments to be written anew as one, if any."""
        if self._retraining is not None:
            return None
        segments = self._layers.view.segments
        for segment in segments:
            if not segment.live or segment.dead > max(256, segment.live // _DEAD):
                return [segment]
        for at in range(len(segments) - 1, 0, -1):
            older, newer = segments[at - 1], segments[at]
            if (
                not (isinstance(older, IvfSegment) and isinstance(newer, IvfSegment))
                or newer.coarse is not older.coarse
            ):
                continue
            if at == len(segments) - 1 and len(newer.ids) < self._tail_rows:
                continue  # the tail still takes rows
            if _RATIO * newer.live >= older.live and older.live + newer.live <= self._segment_rows:
                return [older, newer]
        return None

    def _compact(self, plan: list[AnySegment]) -> None:
        layers = self._layers
        live = sum(segment.live for segment in plan)
        slots = sum(len(segment.ids) for segment in plan)
        if not live:
            layers.swap(plan, None, [np.empty(0, np.int64) for _ in plan])
        elif isinstance(plan[0], HnswSegment):
            _drain(self._rewrite_hnsw(plan[0]))
        elif len(plan) == 1 and slots <= 2 * live:
            (old,) = plan
            stay = np.where(old.alive(), np.arange(slots), -1)
            new = plan[0].extended(np.empty(0, np.int64), np.empty((0, layers.dim), np.float32))
            layers.swap(plan, new, [stay])
        else:
            ivf = [segment for segment in plan if isinstance(segment, IvfSegment)]
            new, moves = combined(ivf, layers.take_number() if slots > 2 * live else None)
            layers.swap(plan, new, moves)
        self._count(compactions=1)

    def _rewrite_hnsw(self, segment: AnySegment) -> Generator[None, None, None]:
        number = self._layers.take_number()
        new = HnswSegment.empty(number, self._layers.dim)
        move = np.full(len(segment.ids), -1, np.int64)
        ids = []
        start = 0
        for slots, rows in segment.parts():
            new.index.add(np.ascontiguousarray(rows))
            ids.append(segment.ids[slots])
            move[slots] = np.arange(start, start + len(slots))
            start += len(slots)
            yield
        new.ids = np.concatenate(ids) if ids else np.empty(0, np.int64)
        self._layers.swap([segment], new, [move])

    # -- retrain ------------------------------------------------------------------------------------------------------
    def ask_retrain(self) -> None:
        self._wanted = True

    def _retrain_due(self) -> bool:
        layers = self._layers
        if not layers.view.segments or self._retraining is not None:
            return False
        wrong = any(isinstance(s, HnswSegment) != (self._kind() == "hnsw") for s in layers.view.segments)
        coarse = layers.coarse
        if self._wanted or wrong or coarse is None:
            return self._wanted or wrong
        rows = len(layers.map)
        if coarse.kind != self._kind() or rows >= _GROWN * coarse.trained_rows:
            return True
        if 4 * rows < coarse.trained_rows and coarse.trained_rows > 2 * layers.exact_rows:
            return True
        if self._drifted():
            return True
        largest = max((s for s in layers.view.segments if isinstance(s, IvfSegment)), key=lambda s: s.live)
        grown = largest.live > coarse.trained_rows // 2
        return grown and coarse.imbalance > 0 and largest.imbalance > _UNEVEN * coarse.imbalance

    def _drifted(self) -> bool:
        """Probes miss the target although nprobe has been raised a lot since the training."""
        coarse = self._layers.coarse
        if coarse is None or not coarse.tuned or len(self._recalls) < _LEAST:
            return False
        low = float(np.mean(self._recalls)) < self._target
        return low and (self.is_fixed or self.nprobe >= 2 * coarse.tuned or self.nprobe >= coarse.nlist)

    def _retrain(self) -> Generator[None, None, None]:
        self._wanted = False
        layers = self._layers
        total = len(layers.map)
        if self._kind() == "hnsw":
            yield from self._move_to_hnsw()
        else:
            lists = lists_for(total)
            share = min(1.0, 1.2 * lists * ROWS_PER_LIST / max(1, total))
            parts = []
            for segment in layers.view.segments:
                for _, rows in segment.parts(share=share, seed=self._seed + self.counts.retrains):
                    parts.append(rows)
                yield
            if not parts:
                return
            sample = self._sampled(np.concatenate(parts), lists * ROWS_PER_LIST)
            del parts
            lists = min(lists, max(1, len(sample) // 4))
            layers.coarse = yield from train(
                sample, lists, kind=self._kind(), trained_rows=total, seed=self._seed, former=layers.coarse
            )
            del sample
            while old := [s for s in layers.view.segments if getattr(s, "coarse", None) is not layers.coarse]:
                yield from self._move(old[0])
            largest = max(layers.view.segments, key=lambda s: s.live, default=None)
            if isinstance(largest, IvfSegment):
                largest.coarse.imbalance = 0.0
                self._measure(largest)
        self._recalls.clear()
        self._count(retrains=1)
        _trim()

    def _move(self, segment: AnySegment) -> Generator[None, None, None]:
        """Write a segment under the new centroids, in the same slots."""
        coarse = self._layers.coarse
        assert coarse is not None
        index = coarse.empty()
        move = np.full(len(segment.ids), -1, np.int64)
        for slots, rows in segment.parts():
            index.add_with_ids(np.ascontiguousarray(rows), slots)
            move[slots] = slots
            yield
        new = IvfSegment(segment.number, coarse, index, segment.ids, np.zeros(len(segment.ids), np.bool_))
        self._layers.swap([segment], new if index.ntotal else None, [move])

    def _move_to_hnsw(self) -> Generator[None, None, None]:
        layers = self._layers
        while old := [s for s in layers.view.segments if not isinstance(s, HnswSegment)]:
            yield from self._rewrite_hnsw(old[0])
        layers.coarse = None

    # -- probes -------------------------------------------------------------------------------------------------------
    def ask_probe(self, query: Floats, k: int) -> None:
        """Have a query ``(1, dim)`` answered exactly, too."""
        self._asked.append((query, k))
        self.kick()

    def _probe(self) -> None:
        query, k = self._asked.popleft()
        if not self._layers.view.segments:
            return
        truth = self._search(query, k, True)[0]
        truth = truth[truth >= 0]
        if not len(truth):
            return
        found = self._search(query, k, False)[0]
        self._recalls.append(float(np.isin(truth, found).mean()))
        self._count(probes=1)
        if self.is_fixed or len(self._recalls) < _LEAST:
            return
        recall = float(np.mean(self._recalls))
        if recall < self._target:
            coarse = self._layers.coarse
            self.nprobe = min(-(-self.nprobe * 5 // 4), coarse.nlist if coarse else 4096)
            if not self._drifted():
                self._recalls.clear()
        elif len(self._recalls) == _WINDOW and recall > self._target + 0.6 * (1 - self._target):
            self.nprobe = max(1, self.nprobe * 9 // 10)
            self._recalls.clear()

    @property
    def recall(self) -> float | None:
        """Mean recall of the last probes; None before there are any."""
        return float(np.mean(self._recalls)) if self._recalls else None

    def _count(self, **more: int) -> None:
        self.counts = self.counts._replace(**{name: getattr(self.counts, name) + n for name, n in more.items()})


def _share_found(truth: Ids, found: Ids) -> float:
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def _drain(steps: Generator[None, None, Any]) -> None:
    for _ in steps:
        pass


def _trim() -> None:
    """Give freed memory back (glibc keeps it otherwise: a replaced segment would count twice)."""
    if _libc is not None:
        _libc.malloc_trim(0)


try:
    _libc: Any = ctypes.CDLL("libc.so.6")
    _libc.malloc_trim  # noqa: B018
except (OSError, AttributeError):
    _libc = None
