"""The filter language: ``{field, op, value}``, ``{and|or: […]}``, ``{not: {…}}``, compiled to a predicate.

A field that is absent satisfies ``ne`` and ``exists: false`` and nothing else; a list matches ``eq`` and ``in`` by any
of its members. Numbers compare with numbers and strings with strings; other pairs are not in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamfold.core.errors import nearest
from streamfold.pipelines.serve.problems import Problem, at

Matches = Callable[[Mapping[str, Any]], bool]
_FIELDS = ("document_id", "item_id", "categories", "metadata.*", "properties.*")
_PLAIN = frozenset(("document_id", "item_id", "categories"))
_MAPS = frozenset(("metadata", "properties"))
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
}
_OPS = ("eq", "ne", "in", *_ORDER, "exists")
_MAX_DEPTH = 16
_MAX_NODES = 256
_ABSENT = object()


def compile_filter(value: Any, pointer: str = "/filter") -> Matches:
    """Compile a filter; raises a problem that points to what is wrong with it."""
    return _Compiler().node(value, pointer, 0)


class _Compiler:
    def __init__(self) -> None:
        self._nodes = 0

    def node(self, value: Any, pointer: str, depth: int) -> Matches:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _wrong(pointer, f"at most {_MAX_DEPTH} levels and {_MAX_NODES} conditions are allowed")
        if not isinstance(value, dict):
            raise _wrong(pointer, "a condition is an object: {field, op, value}, {and: […]}, {or: […]} or {not: {…}}")
        if "field" in value:
            return self._condition(value, pointer)
        if len(value) != 1 or (name := next(iter(value))) not in ("and", "or", "not"):
            unknown = next((key for key in value if key not in ("and", "or", "not", "op", "value")), None)
            if unknown is None:
                raise _wrong(pointer, "give either field, op and value, or one of and, or, not")
            detail = f"unknown field '{str(unknown)[:64]}' in {pointer}{nearest(str(unknown)[:64], _MEMBERS)}"
            raise at(f"{pointer}/{str(unknown)[:64]}", "unknown-field", detail)
        if name == "not":
            inner = self.node(value["not"], f"{pointer}/not", depth + 1)
            return lambda row: not inner(row)
        parts = value[name]
        if not isinstance(parts, list) or not parts:
            raise _wrong(f"{pointer}/{name}", f"{name} takes a list of one or more conditions")
        tests = [self.node(part, f"{pointer}/{name}/{i}", depth + 1) for i, part in enumerate(parts)]
        join = all if name == "and" else any
        return lambda row: join(test(row) for test in tests)

    def _condition(self, value: dict[str, Any], pointer: str) -> Matches:
        for key in value:
            if key not in ("field", "op", "value"):
                detail = f"unknown field '{key[:64]}' in {pointer}{nearest(key[:64], ('field', 'op', 'value'))}"
                raise at(f"{pointer}/{key[:64]}", "unknown-field", detail)
        get = _getter(value["field"], f"{pointer}/field")
        op, wanted = value.get("op", "eq"), value.get("value", _ABSENT)
        if op not in _OPS:
            raise _wrong(f"{pointer}/op", f"unknown operator '{str(op)[:40]}'{nearest(str(op)[:40], _OPS)}")
        if op == "exists":
            if wanted not in (True, False, _ABSENT):
                raise _wrong(f"{pointer}/value", "exists takes true or false")
            return lambda row: (get(row) is not None) == (wanted is not False)
        if wanted is _ABSENT:
            raise _wrong(f"{pointer}/value", f"{op} needs a value")
        if op == "in":
            if not isinstance(wanted, list):
                raise _wrong(f"{pointer}/value", "in takes a list of values")
            return lambda row: any(_equal(get(row), one) for one in wanted)
        if isinstance(wanted, (list, dict)):
            raise _wrong(f"{pointer}/value", f"{op} takes a single value; use in for a list")
        if op == "eq":
            return lambda row: _equal(get(row), wanted)
        if op == "ne":
            return lambda row: not _equal(get(row), wanted)
        compare = _ORDER[op]
        return lambda row: _ordered(get(row), wanted) and compare(get(row), wanted)


_MEMBERS = ("field", "op", "value", "and", "or", "not")


def _getter(field: Any, pointer: str) -> Callable[[Mapping[str, Any]], Any]:
    if isinstance(field, str):
        if field in _PLAIN:
            return lambda row: row.get(field)
        head, dot, name = field.partition(".")
        if head in _MAPS and dot and name:
            return lambda row: (row.get(head) or {}).get(name)
    raise _wrong(pointer, f"unknown filter field '{str(field)[:64]}'{nearest(str(field)[:64], _FIELDS)}")


def _equal(have: Any, wanted: Any) -> bool:
    if isinstance(have, (list, tuple)):
        return any(_equal(one, wanted) for one in have)
    return have is not None and isinstance(have, bool) == isinstance(wanted, bool) and bool(have == wanted)


def _ordered(have: Any, wanted: Any) -> bool:
    if isinstance(have, bool) or isinstance(wanted, bool):
        return False
    numbers = isinstance(have, (int, float)) and isinstance(wanted, (int, float))
    return numbers or (isinstance(have, str) and isinstance(wanted, str))


def _wrong(pointer: str, detail: str) -> Problem:
    return at(pointer, "invalid-value", f"{pointer}: {detail}")
