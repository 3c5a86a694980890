"""Garbage collection that does not stop everybody: what the stores hold is set aside, and looked at when it doubles.

A full collection looks at each object of the stores: 1 s with 60,000 documents, while nobody is answered. CPython makes
one for each quarter that the heap grows. Here what is old is frozen (``gc.freeze``: collections pass over it; memory is
given back as before once nothing refers to it). Only cycles that became garbage while frozen wait for the next full
collection: when twice as much is frozen as after the last one, so a process that does not grow makes none.
"""

from __future__ import annotations

import gc
import threading


class Heap:
    """Freezes what is old, in its own thread.

    Parameters
    ----------
    every_s : seconds between looks.
    least : so many frozen objects are not worth a full collection.
    """

    def __init__(self, every_s: float = 5.0, least: int = 100_000) -> None:
        self._every_s = every_s
        self._least = least
        self._base = 0
        self._added = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heap", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop; what is frozen is left to the collector again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        gc.unfreeze()

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()

    def look(self) -> bool:
        """Freeze what outlived a collection of what is young; return whether all was collected."""
        gc.collect(1)
        self._added += len(gc.get_objects(generation=2))
        gc.freeze()
        if self._added <= max(self._base, self._least):
            return False
        self._added = 0  # counting walks through all: no more often than as much again was added
        if gc.get_freeze_count() <= 2 * self._base + self._least:
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._base = gc.get_freeze_count()
        return True
