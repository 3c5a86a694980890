"""Each library behind the same few calls, set up as its manual advises for a stream, on one thread."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import numpy.typing as npt

from vectors.data import DIM, Floats, Ids

_IP = faiss.METRIC_INNER_PRODUCT
_PROBES = (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 96, 128, 192)
_WIDTHS = (32, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 512, 768)


class Engine:
    """An index under test.

    Parameters
    ----------
    rows : the rows it will hold, nominally.
    capacity : ids and slots that it will ever need, for those that must know.
    """

    package: ClassVar[str] = "faiss"
    settings: ClassVar[tuple[int, ...]] = _WIDTHS  # of the search's effort, rising
    filters: ClassVar[bool] = True
    takes_ids: ClassVar[bool] = False  # as a filter, besides what filter_of gives
    concurrent: ClassVar[bool] = False  # may be read while it is written
    tunes: ClassVar[bool] = False

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity

    def bulk(self, ids: Ids, vectors: Floats) -> None:
        """Fill the empty index."""
        self.add(ids, vectors)

    def add(self, ids: Ids, vectors: Floats) -> None:
        """Insert ids that are not there."""
        raise NotImplementedError

    def delete(self, ids: Ids) -> None:
        raise NotImplementedError

    def update(self, ids: Ids, vectors: Floats) -> None:
        """Replace the vectors of ids that are there."""
        self.delete(ids)
        self.add(ids, vectors)

    def maintain(self) -> None:
        """Do the work that was put off."""

    def half_grown(self, ids: Ids, vectors: Floats) -> None:
        """Bring the part that grows between merges to half of its size, by writing rows again."""

    def choose(self, setting: int) -> None:
        """Set the search's effort."""
        raise NotImplementedError

    def search(self, queries: Floats, k: int) -> Ids:
        raise NotImplementedError

    def filter_of(self, allowed: Ids) -> Any:
        """What :meth:`filtered` takes for these ids: made once, for many searches."""
        return allowed

    def filtered(self, queries: Floats, k: int, chosen: Any) -> Ids:
        raise NotImplementedError

    def retrain(self) -> None:
        """Fit the index to what it holds now; nothing for those that do not train or cannot train anew."""

    def retrains(self) -> int:
        """How often it has trained anew."""
        return 0

    def figures(self) -> dict[str, Any]:
        """What the index tells about itself."""
        return {}

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def opened(self, path: Path, *, background: bool = False) -> Engine:
        """Return an engine over what was saved."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class Streamfold(Engine):
    """The layered index of this project, merging in ``maintain``: by default IVF in float16."""

    package = "streamfold"
    settings = _PROBES
    takes_ids = True
    concurrent = True
    tunes = True
    kind: ClassVar[str] = "ivf-fp16"

    def __init__(self, rows: int, capacity: int, *, background: bool = False) -> None:
        from streamfold.core.stores.vectors import LayeredVectors

        super().__init__(rows, capacity)
        self.index = LayeredVectors(DIM, kind=self.kind, background=background)

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.index.upsert(ids, vectors)

    def delete(self, ids: Ids) -> None:
        self.index.delete(ids)

    def update(self, ids: Ids, vectors: Floats) -> None:
        self.index.upsert(ids, vectors)

    def maintain(self) -> None:
        self.index.maintain()

    def half_grown(self, ids: Ids, vectors: Floats) -> None:
        half = min(max(len(ids) // 128, 512), 2048) // 2
        at = 0
        while (missing := half - self.index.stats().growing) and at < len(ids):
            count = missing if missing > 0 else half  # too full: on to the next merge
            self.index.upsert(ids[at : at + count], vectors[at : at + count])
            self.index.maintain()
            at += count

    def choose(self, setting: int) -> None:
        self.index.nprobe = setting

    def search(self, queries: Floats, k: int) -> Ids:
        return self.index.search(queries, k)[0]

    def filter_of(self, allowed: Ids) -> Any:
        return _mask(allowed, self.capacity)

    def filtered(self, queries: Floats, k: int, chosen: Any) -> Ids:
        return self.index.search(queries, k, chosen)[0]

    def retrain(self) -> None:
        self.index.retrain()

    def retrains(self) -> int:
        return self.index.stats().retrains

    def figures(self) -> dict[str, Any]:
        stats = self.index.stats()
        names = (
            "rows",
            "dead",
            "growing",
            "frozen",
            "segments",
            "kind",
            "nlist",
            "nprobe",
            "imbalance",
            "recall",
            "merges",
        )
        return {name: getattr(stats, name) for name in (*names, "compactions", "probes", "retrains", "bytes")}

    def save(self, path: Path) -> None:
        self.index.snapshot(path)

    def opened(self, path: Path, *, background: bool = False) -> Streamfold:
        engine = type(self)(self.rows, self.capacity, background=background)
        engine.index.restore(path)
        return engine

    def close(self) -> None:
        self.index.close()


class StreamfoldSQ8(Streamfold):
    """The same with eight bits a component."""

    kind = "ivf-sq8"


class StreamfoldHNSW(Streamfold):
    """The same for collections that are mostly read."""

    kind = "hnsw"
    settings = _WIDTHS


class StreamfoldAuto(Streamfold):
    """The same, choosing by size and use."""

    kind = "auto"


class FaissIVF(Engine):
    """``IndexIVFScalarQuantizer``, float16, 4 √N lists, a hash map from ids to places; trained on the bulk."""

    settings = _PROBES

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(rows, capacity)
        self._coarse = faiss.IndexFlatIP(DIM)  # the index does not keep it alive

    def bulk(self, ids: Ids, vectors: Floats) -> None:
        lists = min(int(4 * self.rows**0.5), len(vectors) // 39)  # it wants 39 rows a list to train on
        kind = faiss.ScalarQuantizer.QT_fp16
        self.index = faiss.IndexIVFScalarQuantizer(self._coarse, DIM, lists, kind, _IP)
        self.index.cp.niter = 10
        self.index.train(vectors[: 40 * self.index.nlist])
        self.index.set_direct_map_type(faiss.DirectMap.Hashtable)
        self.add(ids, vectors)

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.index.add_with_ids(vectors, ids)

    def delete(self, ids: Ids) -> None:
        self.index.remove_ids(faiss.IDSelectorArray(ids))

    def choose(self, setting: int) -> None:
        self.index.nprobe = setting

    def search(self, queries: Floats, k: int) -> Ids:
        return self.index.search(queries, k)[1]

    def filtered(self, queries: Floats, k: int, allowed: Ids) -> Ids:
        bits = _bitmap(allowed, self.capacity)
        selector = faiss.IDSelectorBitmap(bits)
        return self.index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=self.index.nprobe, sel=selector))[
            1
        ]

    def save(self, path: Path) -> None:
        faiss.write_index(self.index, str(path))

    def opened(self, path: Path, *, background: bool = False) -> FaissIVF:
        engine = type(self)(self.rows, self.capacity)
        engine.index = faiss.read_index(str(path))
        return engine


class FaissHNSW(Engine):
    """``IndexHNSWFlat``, M = 16, efConstruction = 100. It cannot delete: a bitmap of live rows filters its answers."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(rows, capacity)
        self.index = faiss.IndexHNSWFlat(DIM, 16, _IP)
        self.index.hnsw.efConstruction = 100
        self._ids = np.full(2 * capacity, -1, np.int64)
        self._rows: dict[int, int] = {}
        self._live = np.zeros(2 * capacity // 8 + 1, np.uint8)
        self._selector = faiss.IDSelectorBitmap(self._live)
        self._width = 64

    def add(self, ids: Ids, vectors: Floats) -> None:
        rows = np.arange(self.index.ntotal, self.index.ntotal + len(ids))
        self.index.add(vectors)
        self._ids[rows] = ids
        self._rows.update(zip(ids.tolist(), rows.tolist(), strict=True))
        np.bitwise_or.at(self._live, rows >> 3, (1 << (rows & 7)).astype(np.uint8))

    def delete(self, ids: Ids) -> None:
        rows = np.array([self._rows.pop(i) for i in ids.tolist()])
        np.bitwise_and.at(self._live, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))

    def choose(self, setting: int) -> None:
        self._width = setting

    def search(self, queries: Floats, k: int) -> Ids:
        return self._search(queries, k, self._selector)

    def filter_of(self, allowed: Ids) -> Any:
        rows = np.array([self._rows[i] for i in allowed.tolist()])
        return faiss.IDSelectorBitmap(_bitmap(rows, len(self._ids)))

    def filtered(self, queries: Floats, k: int, chosen: Any) -> Ids:
        return self._search(queries, k, chosen)

    def _search(self, queries: Floats, k: int, selector: Any) -> Ids:
        parameters = faiss.SearchParametersHNSW(efSearch=self._width, sel=selector)
        found = self.index.search(queries, k, params=parameters)[1]
        return np.where(found < 0, -1, self._ids[found])

    def save(self, path: Path) -> None:
        path.mkdir()
        faiss.write_index(self.index, str(path / "index"))
        np.savez(path / "rows.npz", ids=self._ids, live=self._live)

    def opened(self, path: Path, *, background: bool = False) -> FaissHNSW:
        engine = type(self)(self.rows, self.capacity)
        engine.index = faiss.read_index(str(path / "index"))
        with np.load(path / "rows.npz") as arrays:
            engine._ids, engine._live = arrays["ids"], arrays["live"]
        live = np.flatnonzero(np.unpackbits(engine._live, bitorder="little"))
        engine._rows = dict(zip(engine._ids[live].tolist(), live.tolist(), strict=True))
        engine._selector = faiss.IDSelectorBitmap(engine._live)
        engine._width = self._width
        return engine


class HnswLib(Engine):
    """``hnswlib``, M = 16, ef_construction = 100; deletes by mark, and updates in place."""

    package = "hnswlib"
    concurrent = True

    def __init__(self, rows: int, capacity: int) -> None:
        import hnswlib

        super().__init__(rows, capacity)
        self.index = hnswlib.Index("ip", DIM)
        self.index.init_index(capacity, ef_construction=100, M=16)
        self.index.set_num_threads(1)
        self._failed = 0

    def figures(self) -> dict[str, Any]:
        return {"failed_searches": self._failed}

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.index.add_items(vectors, ids)  # an id that is marked as deleted comes back

    def update(self, ids: Ids, vectors: Floats) -> None:
        self.index.add_items(vectors, ids)

    def delete(self, ids: Ids) -> None:
        for i in ids.tolist():
            self.index.mark_deleted(i)

    def choose(self, setting: int) -> None:
        self._width = setting
        self.index.set_ef(setting)

    def search(self, queries: Floats, k: int) -> Ids:
        try:
            return self.index.knn_query(queries, k)[0].astype(np.int64)
        except RuntimeError:  # it met fewer than k rows that are not deleted
            self._failed += 1
            return np.full((len(queries), k), -1, np.int64)

    def filter_of(self, allowed: Ids) -> Any:
        return _mask(allowed, self.capacity).__getitem__

    def filtered(self, queries: Floats, k: int, chosen: Any) -> Ids:
        found = np.full((len(queries), k), -1, np.int64)
        for i in range(len(queries)):
            try:
                found[i] = self.index.knn_query(queries[i], k, filter=chosen)[0]
            except RuntimeError:  # fewer than k were met
                continue
        return found

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def opened(self, path: Path, *, background: bool = False) -> HnswLib:
        engine = type(self)(self.rows, 1)
        engine.capacity = self.capacity
        engine.index = type(self.index)("ip", DIM)
        engine.index.load_index(str(path), self.capacity)
        engine.index.set_num_threads(1)
        engine.choose(self._width)
        return engine


class USearch(Engine):
    """``usearch``, float16, connectivity 16, expansion 100 on insert; no filter in its Python interface."""

    package = "usearch"
    filters = False

    def __init__(self, rows: int, capacity: int) -> None:
        from usearch.index import Index

        super().__init__(rows, capacity)
        self.index = Index(ndim=DIM, metric="ip", dtype="f16", connectivity=16, expansion_add=100)

    def add(self, ids: Ids, vectors: Floats) -> None:
        self.index.add(ids, vectors, threads=1)

    def delete(self, ids: Ids) -> None:
        self.index.remove(ids, threads=1)

    def choose(self, setting: int) -> None:
        self.index.expansion_search = setting

    def search(self, queries: Floats, k: int) -> Ids:
        return self.index.search(queries, k, threads=1).keys.astype(np.int64).reshape(len(queries), -1)

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def opened(self, path: Path, *, background: bool = False) -> USearch:
        engine = type(self)(self.rows, self.capacity)
        engine.index.load(str(path))
        return engine


def _mask(numbers: Ids, size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[numbers] = True
    return mask


def _bitmap(numbers: Ids, size: int) -> npt.NDArray[np.uint8]:
    return np.packbits(_mask(numbers, size), bitorder="little")


OURS = "streamfold"
ENGINES: dict[str, type[Engine]] = {
    OURS: Streamfold,
    "faiss-ivf": FaissIVF,
    "faiss-hnsw": FaissHNSW,
    "hnswlib": HnswLib,
    "usearch": USearch,
    "streamfold-sq8": StreamfoldSQ8,
    "streamfold-hnsw": StreamfoldHNSW,
    "streamfold-auto": StreamfoldAuto,
}
DEFAULT = (OURS, "faiss-ivf", "faiss-hnsw", "hnswlib", "usearch")


def installed(name: str) -> bool:
    """Whether an engine's package is there."""
    return find_spec(ENGINES[name].package) is not None
