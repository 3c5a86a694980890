"""The GPU replica: its logic on a CPU copy that ignores selectors as a GPU does, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest

from streamfold.core.errors import StoreError
from streamfold.core.stores.vectors import LayeredVectors
from streamfold.core.stores.vectors.replica import on_gpu

HAS_GPU = getattr(faiss, "get_num_gpus", lambda: 0)() > 0


class Deaf:
    """An index that ignores selectors, as FAISS on a GPU does; counts its searches."""

    searches = 0

    def __init__(self, index: Any) -> None:
        self.index = faiss.clone_index(index)

    def search(self, queries: Any, k: int, params: Any) -> Any:
        Deaf.searches += 1
        return self.index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=params.nprobe))


MAKERS = [pytest.param(lambda: Deaf, id="cpu")] + ([pytest.param(on_gpu, id="gpu")] if HAS_GPU else [])


@pytest.mark.parametrize("maker", MAKERS)
def test_deleted_and_replaced_rows_are_never_found(maker: Callable[[], Any]) -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((3000, 16)).astype(np.float32)
    options: dict[str, Any] = {"exact_rows": 256, "growing_rows": 64, "background": False, "probe_every": 0}
    plain, copied = LayeredVectors(16, **options), LayeredVectors(16, replicate=maker(), **options)
    for index in (plain, copied):
        index.upsert(np.arange(2000), rows[:2000])
        index.maintain()
        index.delete(np.arange(0, 500))
        index.upsert(np.arange(500, 600), rows[2000:2100])
        index.nprobe = 1000
    before = Deaf.searches
    queries = rng.standard_normal((50, 16)).astype(np.float32)
    for k in (1, 10, 400):
        expected, found = plain.search(queries, k), copied.search(queries, k)
        assert np.array_equal(expected[0], found[0])
        assert np.allclose(expected[1], found[1], atol=1e-4)
    assert maker is on_gpu or Deaf.searches > before, "the copy was never asked"
    copied.delete(np.arange(2000))
    assert (copied.search(queries, 5)[0] == -1).all()


@pytest.mark.skipif(HAS_GPU, reason="FAISS sees a GPU here")
def test_without_a_gpu_the_error_says_what_to_do() -> None:
    with pytest.raises(StoreError, match="no GPU; install a faiss-gpu build"):
        LayeredVectors(4, gpu=True)
