"""What every live store can do. Core owns durability, feed, view, round trip and byte accounting through this.

Write side (the fold): ``begin`` … writes … then ``keep`` or ``undo`` for each event; ``drain`` at a commit gives the
packed, coalesced changes since the last one. Read side (views) and recovery: ``load`` a checkpoint, then ``apply``
drained changes in order. ``apply(drain())`` on a replica gives an equal store; ``save`` → ``load`` likewise.

``set``, never ``increment``: applying the same changes twice gives the same store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Store(Protocol):
    """Common to all kinds."""

    name: str

    def begin(self) -> None:
        """Start an event: later ``undo`` returns to here."""

    def keep(self) -> None:
        """The event was folded: its writes stand."""

    def undo(self) -> None:
        """The event was skipped: its writes leave no trace."""

    def drain(self) -> bytes | None:
        """Packed changes since the last drain, coalesced per key; None when there are none."""

    def apply(self, changes: bytes | memoryview) -> None:
        """Apply drained changes of another copy (idempotent)."""

    def save(self, folder: Path) -> None:
        """Write files into an existing empty folder (arrays: safetensors; rows: msgpack)."""

    def load(self, folder: Path) -> None:
        """Replace the content by what ``save`` wrote."""

    def state_bytes(self) -> int:
        """Bytes of content (O(1), an estimate within a factor of two)."""

    def fingerprint(self) -> dict[str, Any]:
        """Content in a canonical form for ``verify``: equal stores give equal values (a digest of sorted rows)."""

    def contents(self) -> Any:
        """What it holds, to be compared with another copy's: an array, or values by key; packed ones as digests."""

    def close(self) -> None: ...


class TableStore(Store, Protocol):
    """Rows by key."""

    def get(self, key: Any, default: Any = None) -> Any: ...
    def get_many(self, keys: Sequence[Any], default: Any = None) -> list[Any]: ...
    def put(self, key: Any, value: Any) -> None: ...
    def delete(self, key: Any) -> None:
        """Delete a row; a missing key is no error."""

    def top(self, n: int) -> list[tuple[Any, Any]]:
        """The n rows with the highest values, best first, ties by key (numeric tables)."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...
    def first(self) -> tuple[Any, Any] | None:
        """The row whose key has been there for longest, the same in every copy; a queue's head."""

    def __contains__(self, key: Any) -> bool: ...
    def __len__(self) -> int: ...


class TextStore(Store, Protocol):
    """BM25 over texts by id, taking inserts and deletes at once."""

    def put(self, ids: Sequence[int], fields: Sequence[dict[str, str]]) -> None:
        """Insert or replace texts: one ``{field: text}`` per id."""

    def delete(self, ids: Sequence[int]) -> None: ...
    def search(self, query: str, k: int, allow: Ids | None = None) -> tuple[Ids, Floats]:
        """At most k (id, score), best first, scores > 0; ``allow``: ids to choose from."""

    def __len__(self) -> int: ...


class BlobStore(Store, Protocol):
    """Bytes by key."""

    def put(self, key: str, value: bytes) -> None: ...
    def delete(self, key: str) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def __contains__(self, key: str) -> bool: ...
    def __len__(self) -> int: ...
