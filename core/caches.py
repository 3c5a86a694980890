"""Caches of this process that hold what events said, by id or by text: emptied when something was erased.

Stores lose the erased by their policies. What a process keeps beside them to be quick (codes of ids, stems of words,
solved heads, generated answers) is named here where it is made, so that erasing reaches it too: the process that
completes an erasure empties its caches before it says so (``core/fold/eraser.py``), every other one when it next looks
(:class:`Erasures`).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from streamfold.core.ledger.abc import Ledger

C = TypeVar("C")
log = logging.getLogger("streamfold.erase")
_LOOK_S = 1.0
_lock = threading.Lock()
_caches: list[Callable[[], Any]] = []
"""Each returns what empties a cache, or None once nobody has the cache any more."""


def emptied_on_erasure(cache: C) -> C:
    """Have a cache emptied when something was erased; returns it, so that this decorates what ``lru_cache`` made.

    Parameters
    ----------
    cache : has ``cache_clear`` or ``clear``, or is what empties one: a function or a bound method. It must be safe to
        call from any thread. Nothing is kept alive by being named here, apart from functions.

    Examples
    --------
    >>> from functools import lru_cache
    >>> @emptied_on_erasure
    ... @lru_cache(1000)
    ... def shown(user_id: str) -> str:
    ...     return user_id.title()
    >>> shown("ada"), shown.cache_info().currsize
    ('Ada', 1)
    >>> empty_caches()
    >>> shown.cache_info().currsize
    0
    """
    named = _named(cache)
    with _lock:
        _caches[:] = [one for one in _caches if one() is not None]
        _caches.append(named)
    return cache


def _named(cache: Any) -> Callable[[], Any]:
    if isinstance(cache, MethodType):
        return weakref.WeakMethod(cache)
    for way in ("cache_clear", "clear"):
        if hasattr(cache, way):
            found = weakref.ref(cache)
            return lambda: None if (one := found()) is None else getattr(one, way)
    return lambda: cache


def empty_caches() -> None:
    """Empty every cache that was named. O(what they hold)."""
    with _lock:
        emptying = [empty for one in _caches if (empty := one()) is not None]
    for empty in emptying:
        try:
            empty()
        except Exception:
            log.exception("cache_not_emptied %r", empty)


class Erasures:
    """Empties this process's caches after erasures that other processes complete."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ended = ledger.erasures_ended()
        self._due = 0.0
        self._again = False

    def look(self) -> None:
        """Look whether an erasure was completed, at most once a second: one read by a key. One thread calls this.

        Caches are emptied by two looks: at the first a view may not have come to where the erased is gone.
        """
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LOOK_S
        ended = self._ledger.erasures_ended()
        if ended != self._ended or self._again:
            empty_caches()
        self._ended, self._again = ended, ended != self._ended
