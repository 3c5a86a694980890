"""Multi-hop retrieval without an LLM: all gold passages in the top 8, over 101 questions of 2WikiMultihopQA.

Every mode; the default mode without embeddings, in lower case, with one letter of the longest word wrong (three seeds),
and with titles withheld. CPU per question is that of the thread, the encoder's apart.

    python tests/benchmarks/bench_retrieval.py                    # first785: two minutes
    python tests/benchmarks/bench_retrieval.py --sets first785 full
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt

from streamfold.core import Backend, Retrieval
from streamfold.core.testing.world import World, plugin
from streamfold.plugins import builtin
from streamfold.plugins.minilm import MiniLM

DATA = Path(__file__).parents[3] / "shared" / "data" / "2wiki101"
TOP = 8


class Kept:
    """MiniLM, each text once, with the CPU seconds that it took."""

    name, version, dim = "minilm-kept", "1", 384

    def __init__(self) -> None:
        self._model = MiniLM()
        self._rows: dict[str, npt.NDArray[np.float32]] = {}
        self.spent_s = 0.0

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        started = time.thread_time()
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if missing:
            self._rows.update(zip(missing, self._model.encode(missing), strict=True))
        rows = np.stack([self._rows[text] for text in texts])
        self.spent_s += time.thread_time() - started
        return rows


ENCODER = Kept()


def folded(folder: Path, data: Path, *, titles: bool = True) -> World:
    """Fold a corpus."""
    offered = plugin([], [Backend(kind="encoder", name="kept", make=lambda _: ENCODER)])
    backends = {"encoder": {"use": "kept"}, "chunker": {"use": "sentences"}}
    world = World(folder, [builtin, offered], {"graph_index": {}}, backends=backends)
    rows = [json.loads(line) for line in (data / "corpus.jsonl").open()]
    for start in range(0, len(rows), 500):
        events = []
        for row in rows[start : start + 500]:
            title = {"title": row["title"]} if titles else {}
            events.append(("document.upserted", {"document_id": row["_id"], "text": row["text"], **title}))
        world.send_many(events)
        world.fold()
    return world


def questions(data: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield each question and its gold passages."""
    gold: dict[str, set[str]] = {}
    for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, passage, _ = line.split("\t")
        gold.setdefault(query, set()).add(passage)
    for line in (data / "queries.jsonl").open():
        row = json.loads(line)
        yield row["text"], gold[row["_id"]]


def one_letter_wrong(seed: int) -> Callable[[str], str]:
    """Change a letter of the longest word."""
    rng = random.Random(seed)

    def change(question: str) -> str:
        words = question.split()
        longest = max(range(len(words)), key=lambda i: (len(words[i].strip("?,.")), -i))
        word = words[longest].strip("?,.")
        at = rng.randrange(len(word))
        letter = rng.choice([c for c in string.ascii_lowercase if c != word[at].lower()])
        words[longest] = words[longest].replace(word, word[:at] + letter + word[at + 1 :])
        return " ".join(words)

    return change


def measure(world: World, data: Path, change: Callable[[str], str] = str, **request: Any) -> str:
    """Return the share of questions with all gold passages found, and CPU beside the encoder."""
    server = world.view.member("graph_index").server
    hits, cpu = [], []
    for question, gold in questions(data):
        spent, started = ENCODER.spent_s, time.thread_time()
        found = server.retrieve(Retrieval(query=change(question), top_k=TOP, **{"mode": "mix", **request}))
        cpu.append(time.thread_time() - started - (ENCODER.spent_s - spent))
        hits.append(gold <= {chunk.document_id for chunk in found})
    p50, p95 = np.quantile(np.array(cpu) * 1e3, [0.5, 0.95])
    return f"{np.mean(hits):.3f}   CPU p50 {p50:.1f} ms, p95 {p95:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["first785"], choices=["first785", "full"])
    options = parser.parse_args()
    print(json.dumps(harness.machine()))
    for name in options.sets:
        data = DATA / name
        with tempfile.TemporaryDirectory() as folder, folded(Path(folder), data) as world:
            for mode in world.view.member("graph_index").server.modes:
                print(f"{name:9} {mode:22} {measure(world, data, mode=mode)}", flush=True)
            print(f"{name:9} {'mix, no embeddings':22} {measure(world, data, sources=('bm25',))}")
            print(f"{name:9} {'mix, lower case':22} {measure(world, data, str.lower)}")
            for seed in range(3):
                print(f"{name:9} {f'mix, a letter wrong #{seed}':22} {measure(world, data, one_letter_wrong(seed))}")
        with tempfile.TemporaryDirectory() as folder, folded(Path(folder), data, titles=False) as world:
            print(f"{name:9} {'mix, titles withheld':22} {measure(world, data)}", flush=True)


if __name__ == "__main__":
    main()
