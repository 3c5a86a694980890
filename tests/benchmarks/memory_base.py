"""The frozen base that error memories are measured on: a small DeepFM, trained on the first half of a stream.

Two hashed embeddings (user, item), one mean of the item's tokens, a factorisation machine and a perceptron of two
layers (DeepFM, arXiv 1703.04247); the number of epochs is chosen on the last tenth of what it is trained on. Seeds are
fixed. What is kept is the probability of every rating of the stream: the model is a function of user and item alone.

    python tests/benchmarks/memory_base.py DATA OUT.safetensors
"""

from __future__ import annotations

import csv
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

SEED = 7
BUCKETS, DIM, EPOCHS = 1 << 17, 16, 6


class Rating(NamedTuple):
    """One row of the stream, in order of time."""

    user: str
    item: str
    liked: float
    at_s: int
    value: float


class Stream(NamedTuple):
    """Ratings in order of time, and what is told of items: genres and year."""

    ratings: list[Rating]
    items: dict[str, tuple[list[str], str]]


def movietweetings(folder: Path) -> Stream:
    """MovieTweetings-100K; liked = 8 or more."""
    items = {}
    for line in (folder / "movies.dat").read_text(encoding="utf-8").splitlines():
        item, title, genres = line.split("::")
        items[item] = ([genre for genre in genres.split("|") if genre], title[-5:-1])
    with (folder / "ratings.dat").open(encoding="utf-8") as file:
        read = enumerate(csv.reader(file, delimiter=":"))  # the separator is two of them
        rows = [(int(row[6]), n, row[0], row[2], float(row[4])) for n, row in read]
    ratings = [Rating(user, item, float(value >= 8), at_s, value) for at_s, _, user, item, value in sorted(rows)]
    return Stream(ratings, items)


def train(stream: Stream, *, upto: int) -> Any:
    """Probabilities ``(n,) float64`` of all ratings by a model that was trained on the first ``upto``."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    ids, mask = _packed([_features(stream, one) for one in stream.ratings])
    liked = torch.tensor([one.liked for one in stream.ratings], dtype=torch.float32)
    weights = torch.nn.ParameterDict(
        {
            "linear": torch.zeros(BUCKETS),
            "vectors": torch.randn(BUCKETS, DIM) * 0.01,
            "bias": torch.zeros(1),
        }
    )
    head = torch.nn.Sequential(
        torch.nn.Linear(3 * DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    )

    def logits(rows: Any) -> Any:
        at, on = ids[rows], mask[rows]
        vectors = weights["vectors"][at] * on[..., None]
        total = vectors.sum(1)
        pairs = 0.5 * (total**2 - (vectors**2).sum(1)).sum(1)
        tokens = vectors[:, 2:].sum(1) / on[:, 2:].sum(1, keepdim=True).clamp(min=1)
        deep = head(torch.cat([vectors[:, 0], vectors[:, 1], tokens], 1)).squeeze(1)
        return weights["bias"] + (weights["linear"][at] * on).sum(1) + pairs + deep

    optimiser = torch.optim.Adam([*weights.parameters(), *head.parameters()], 1e-3, weight_decay=1e-6)
    validated = torch.arange(int(upto * 0.9), upto)
    best, found = float("inf"), None
    for _ in range(EPOCHS):
        order = rng.permutation(int(upto * 0.9))
        for start in range(0, len(order), 256):
            rows = torch.from_numpy(order[start : start + 256])
            loss = functional.binary_cross_entropy_with_logits(logits(rows), liked[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            loss = functional.binary_cross_entropy_with_logits(logits(validated), liked[validated]).item()
            if loss < best:
                best = loss
                found = torch.sigmoid(torch.cat([logits(rows) for rows in torch.arange(len(ids)).split(4096)]))
    assert found is not None
    return found.double().numpy()


def _features(stream: Stream, one: Rating) -> list[int]:
    genres, year = stream.items.get(one.item, ([], ""))
    names = [f"u={one.user}", f"i={one.item}", *(f"g={genre}" for genre in genres), *([f"y={year}"] if year else [])]
    return [zlib.crc32(name.encode()) % BUCKETS for name in names]


def _packed(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    import torch

    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.float32)
    for n, row in enumerate(rows):
        ids[n, : len(row)], mask[n, : len(row)] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def save(stream: Stream, out: Path) -> None:
    """Train on the first half, and keep what is said of all."""
    save_file({"said": train(stream, upto=len(stream.ratings) // 2)}, out)


if __name__ == "__main__":
    save(movietweetings(Path(sys.argv[1])), Path(sys.argv[2]))
