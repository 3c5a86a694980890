"""Answering changes nothing: neither the stores nor what the policy holds beside them."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from functools import _lru_cache_wrapper
from typing import Any

from streamfold.core.testing.answers import answers
from streamfold.core.testing.lab import Lab, difference, needs

_ROUND = 40
_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType)


def check_serve_writes_nothing(lab: Lab) -> None:
    """No store changes by making the server and asking it."""
    bench = lab.bench(side="both").run(lab.events())
    before = bench.contents()
    server = bench.server()
    found = difference(bench.contents(), before)
    needs(not found, f"serve() itself changed a store ({found}): it may only read the view")
    asked = answers(server)
    found = difference(bench.contents(), before)
    changed = bench.commit()
    needs(
        not found and not changed,
        f"answering {len(asked)} requests changed the stores ({found or sorted(changed)}): a server only reads. What "
        "should be remembered of a request is an event of its own",
    )


def check_reading_grows_nothing(lab: Lab) -> None:
    """Asking for endless new users and texts does not make the policy or its server hold more."""
    bench = lab.bench(side="both").run(lab.events())
    server = bench.server()
    roots = [bench.policy, server, *_globals_of(lab.kind)]
    leave = [bench, *bench.live.stores.values(), lab]
    answers(server, questions=_ROUND, salt="-warm")
    first = held_items(roots, leave)
    for i in range(3):
        answers(server, questions=_ROUND, salt=f"-{i}")
    grown = held_items(roots, leave) - first
    needs(
        grown < _ROUND,
        f"after {3 * _ROUND} more questions the policy and its server hold {grown} more objects: keep nothing per "
        "request (no dict by user, no defaultdict that reading fills); a cache needs a bound (lru_cache(maxsize=…))",
    )


def _globals_of(kind: type) -> list[Any]:
    """Containers at the top of the policy's module."""
    module = sys.modules.get(kind.__module__)
    names = vars(module) if module is not None else {}
    return [
        value for name, value in names.items() if not name.startswith("__") and isinstance(value, (dict, list, set))
    ]


def held_items(roots: list[Any], leave: list[Any]) -> int:
    """Count what is reachable from the roots: objects, without classes, modules, bounded caches and what to leave."""
    seen = {id(one) for one in leave}
    count = 0
    todo = list(roots)
    while todo:
        one = todo.pop()
        if isinstance(one, _LEAVES):
            count += 1
            continue
        if id(one) in seen:
            continue
        seen.add(id(one))
        count += 1
        todo.extend(_inside(one))
    return count


def _inside(one: Any) -> Iterator[Any]:
    if isinstance(one, types.FunctionType):
        yield from (cell.cell_contents for cell in one.__closure__ or () if _filled(cell))
        yield from one.__defaults__ or ()
        yield vars(one)
    elif isinstance(one, types.MethodType):
        yield one.__self__
        yield one.__func__
    elif isinstance(one, _lru_cache_wrapper):
        if one.cache_info().maxsize is None:
            yield from gc.get_referents(one)
    else:
        yield from gc.get_referents(one)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
