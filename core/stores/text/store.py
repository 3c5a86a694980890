"""The store around BM25: analysis, staging, changes, bound, checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError, nearest
from streamfold.core.stores._staged import Staged, whole_ids
from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.declare import Text
from streamfold.core.stores.text.analyser import terms
from streamfold.core.stores.text.bm25 import BM25

Fields = dict[str, str]


class TermScores:
    """What each term of a question gives each text, as a matrix over slots; good until the next write.

    Attributes
    ----------
    terms : the distinct terms that occur in some text.
    scores : ``(terms, slots) float32``, BM25; the sum over rows is the score.
    """

    def __init__(self, terms: list[str], scores: Floats, index: BM25) -> None:
        self.terms = terms
        self.scores = scores
        self._index = index

    def slots(self, ids: Iterable[int]) -> npt.NDArray[np.intp]:
        """Return the columns of texts; -1 for unknown ids."""
        return self._index.slots(ids)

    def holds(self, slots: npt.NDArray[np.intp], ids: Ids) -> npt.NDArray[np.bool_]:
        """Return whether these texts have these columns (< 0: none)."""
        return self._index.holds(slots, ids)

    def slot(self, key: int) -> int:
        """Return the column of one text; -1 for an unknown id."""
        return self._index.slot(key)

    def ids(self) -> Ids:
        """Return the id of each column; those of columns that are dead score 0."""
        return self._index.ids()


class LiveText(Staged[int, Fields]):
    """The live store of :class:`Text`. Reads inside an event see the state before the event.

    Parameters
    ----------
    hold : False on the fold's side of ``fold_reads=False``: only ids and undrained changes are kept.
    analyse : text → search terms, for documents and questions alike.
    """

    def __init__(self, declaration: Text, *, hold: bool = True, analyse: Callable[[str], list[str]] = terms) -> None:
        for field, weight in declaration.weights.items():
            if not weight > 0:
                raise StoreError(f"store {declaration.name!r}: weight of {field!r} must be positive, not {weight}")
        self._weights = dict(declaration.weights)
        self._k1, self._b = declaration.k1, declaration.b
        self._analyse = analyse
        super().__init__(declaration.name, bound=declaration.max_rows, on_full=declaration.on_full, hold=hold)

    def _reset(self) -> None:
        super()._reset()
        self._index = BM25(self._k1, self._b)
        self._digests: dict[int, bytes] = {}

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, ids: Sequence[int], fields: Sequence[Mapping[str, str]]) -> None:
        """Insert or replace texts: one ``{field: text}`` per id, of the declared fields; visible after ``keep``."""
        keys = whole_ids(self.name, ids)
        if len(keys) != len(fields):
            raise StoreError(f"store {self.name!r}: {len(keys)} ids for {len(fields)} texts")
        for given in fields:
            for field, text in given.items():
                if field not in self._weights:
                    raise StoreError(f"store {self.name!r} has no field {field!r}{nearest(field, self._weights)}")
                if not isinstance(text, str):
                    raise StoreError(f"store {self.name!r}: field {field!r} is {type(text).__name__}, not str")
        for key, given in zip(keys, fields, strict=True):
            self._stage_put(key, dict(given))

    def delete(self, ids: Sequence[int]) -> None:
        """Delete; unknown ids are no error."""
        for key in whole_ids(self.name, ids):
            self._stage_delete(key)

    # -- reads --------------------------------------------------------------------------------------------------------
    def search(self, query: str, k: int, allow: Ids | None = None) -> tuple[Ids, Floats]:
        """At most k (id, score), best first, ties by id, scores > 0; ``allow``: ids to choose from."""
        return self.search_terms(self._analyse(query), k, allow)

    def search_terms(self, query: Sequence[str], k: int, allow: Ids | None = None) -> tuple[Ids, Floats]:
        """As :meth:`search`, for a question that is analysed already."""
        self._readable()
        return self._index.search(query, k, allow)

    def term_scores(self, terms: Sequence[str]) -> TermScores:
        """What each analysed term gives each text: many questions made of the same terms, one look at the postings."""
        self._readable()
        found, scores = self._index.term_scores(terms)
        return TermScores(found, scores, self._index)

    def document_frequency(self, term: str) -> int:
        """In how many texts an analysed term occurs."""
        self._readable()
        return self._index.document_frequency(term)

    def contents(self) -> dict[int, bytes]:
        """Digests of the texts by id."""
        self._readable()
        return dict(self._digests)

    # -- for Staged ---------------------------------------------------------------------------------------------------
    def _size(self, value: Fields) -> int:
        return sum(map(len, value.values())) + 32

    def _counts(self, fields: Fields) -> dict[str, float]:
        counts: dict[str, float] = {}
        for field in sorted(fields):
            weight = self._weights[field]
            for term in self._analyse(fields[field]):
                counts[term] = counts.get(term, 0.0) + weight
        return counts

    def _write(self, puts: dict[int, Fields], deletes: list[int]) -> None:
        self._index.delete(deletes)
        for key in deletes:
            self._digests.pop(key, None)
        for key, fields in puts.items():
            self._index.put(key, self._counts(fields))
            self._digests[key] = hashlib.blake2b(pack(sorted(fields.items())), digest_size=8).digest()

    def _save(self, folder: Path) -> None:
        self._index.save(folder)
        (folder / "digests.msgpack").write_bytes(pack(self._digests))

    def _load(self, folder: Path) -> None:
        if self._hold:
            self._index.load(folder)
            self._digests = unpack((folder / "digests.msgpack").read_bytes(), dict[int, bytes])

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for key in sorted(self._digests):
            digest.update(key.to_bytes(8, "little") + self._digests[key])
        return digest.hexdigest()
