"""The heap is frozen as it grows, and garbage in cycles that was frozen goes once it has doubled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from streamfold.pipelines.serve.heap import Heap


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def heap() -> Iterator[Heap]:
    made = Heap(least=1000)
    made.look()  # what the tests have loaded
    yield made
    made.close()


def test_what_is_old_is_frozen_and_freed_when_nothing_refers_to_it(heap: Heap) -> None:
    kept = [[] for _ in range(500)]
    heap.look()
    assert not any(one is kept for one in gc.get_objects()), "collections pass over it"
    gone = {1: Knot()}
    gone[1].me = None
    seen = weakref.ref(gone[1])
    heap.look()
    gone.clear()
    assert seen() is None


def test_frozen_garbage_goes_when_the_heap_has_doubled_and_no_sooner(heap: Heap) -> None:
    knot = Knot()
    seen = weakref.ref(knot)
    heap.look()
    del knot
    assert not heap.look(), "nothing was added"
    gc.collect()
    assert seen() is not None, "it was frozen"
    more = [[] for _ in range(3 * gc.get_freeze_count() + 10_000)]
    assert heap.look()
    assert seen() is None
    assert not heap.look()
    del more


def test_replacing_what_is_frozen_makes_no_full_collection(heap: Heap) -> None:
    rows = [[] for _ in range(5000)]
    heap.look()
    looks = []
    for _ in range(20):
        rows = [[] for _ in range(5000)]
        looks.append(heap.look())
    assert not any(looks[1:])
    assert len(rows) == 5000
