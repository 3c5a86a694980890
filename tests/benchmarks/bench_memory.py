"""What an error memory adds to its base, on MovieTweetings by time, tested on each rating before it is learned.

    python tests/benchmarks/bench_memory.py --data ../shared/data/movietweetings-100k [--base frozen --base ensemble]

``frozen``: a small DeepFM trained on the first half (``memory_base.py``) and never again; its memories start at the
second half, where all are compared. Other bases learn every rating, and all are compared after the first tenth. Beside
them stands the base with refitted user and item biases. All memories fold the same events in one group. Per-user AUC:
sessions of one user (gap > 24 h), every score from before the session's first rating. Intervals: 95 %, from bootstraps
of users, paired.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import memory_base
import numpy as np
from safetensors.numpy import load_file

from streamfold.core import Array, Event, Example, Policy, Prepared, Ranking, RankRequest, Stores, View
from streamfold.core.fold.one import fold_one
from streamfold.core.fold.stores import GroupStores, fold_stores, readers
from streamfold.core.ledger.abc import LogRow
from streamfold.core.stores import open_store
from streamfold.core.testing.world import World, plugin
from streamfold.plugins import builtin
from streamfold.plugins._error_memory import MemoryConfig

MEMORIES = ("residual_table", "reloop2_lsh", "reloop2_topk")
SESSION_GAP_S = 86_400
BOOTSTRAPS = 300
LEAST = 1e-4
_WARM = 200
ARTEFACT = Path("build/memory-base.safetensors")


class Frozen(Policy):
    """The frozen base; its scores are those of the artefact."""

    name, version, handles, reads = "frozen", 1, ("interaction.observed",), ("activity",)
    stores = (Array("nothing", shape=(1, 1)),)
    said: dict[tuple[str, str], float] = {}

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        pass

    def serve(self, view: View) -> FrozenServer:
        return FrozenServer()


class FrozenServer:
    def rank(self, request: RankRequest) -> Ranking:
        scores = np.array([Frozen.said[request.user, item] for item in request.item_ids])
        return Ranking(scores=scores, known=np.ones(len(scores), bool))

    def score(self, example: Example) -> float:
        return Frozen.said[example.user, example.item]


class Biases:
    """The base with a bias of each user and item on top, refitted with each example by penalised Newton steps."""

    def __init__(self, prior: float = 2.0) -> None:
        self._prior = prior
        self._fitted: dict[str, list[float]] = {}

    def score(self, user: str, item: str, base: float) -> float:
        return 1 / (1 + math.exp(-self._logit(user, item, base)))

    def _logit(self, user: str, item: str, base: float) -> float:
        kept = min(max(base, LEAST), 1 - LEAST)
        return math.log(kept / (1 - kept)) + sum(self._fitted.get(key, (0.0, 0.0))[0] for key in (user, f"i:{item}"))

    def learn(self, user: str, item: str, base: float, label: float) -> None:
        for key in (user, f"i:{item}"):
            said = 1 / (1 + math.exp(-self._logit(user, item, base)))
            bias = self._fitted.setdefault(key, [0.0, 0.0])
            bias[1] += said * (1 - said)
            bias[0] += (label - said - bias[0] * 0.01) / (bias[1] + self._prior)


@dataclass
class Run:
    """Scores of one base and what stands on it, by name: of each rating, and of each session's ratings."""

    names: list[str]
    labels: list[float] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    sessions: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


class _View:
    """One member's stores on the fold's side, to ask its server there."""

    def __init__(self, stores: Any, reads: Any) -> None:
        self._stores, self._reads = stores, reads

    def __getitem__(self, name: str) -> Any:
        return self._stores[name]

    def of(self, policy: str) -> Any:
        return self._reads[policy]


def events_of(world: World, stream: memory_base.Stream) -> tuple[list[Event], list[Event]]:
    """Items, then ratings, decoded as core decodes them."""
    types, given = world.registry.event_types, []
    for item, (genres, year) in stream.items.items():
        told = {"item_id": item, "categories": genres, **({"properties": {"year": year}} if year.isdigit() else {})}
        given.append(("item.upserted", told, stream.ratings[0].at_s))
    for one in stream.ratings:
        told = {"user_id": one.user, "item_id": one.item, "action": "rating", "value": one.value}
        given.append(("interaction.observed", told, one.at_s))
    made = []
    for seq, (type_, told, at_s) in enumerate(given, 1):
        new = world.acceptor.accept_data(type_, told, id=f"e{seq}", source="bench", time_us=at_s * 1_000_000)
        made.append(types.decode(LogRow(seq, at_s * 1_000_000, new.type, new.body)))
    return made[: len(stream.items)], made[len(stream.items) :]


def sessions_of(stream: memory_base.Stream) -> dict[int, list[int]]:
    """Ratings of each session by the number of its first one."""
    last: dict[str, tuple[int, int]] = {}
    found: dict[int, list[int]] = {}
    for n, one in enumerate(stream.ratings):
        start, at_s = last.get(one.user, (n, one.at_s))
        if one.at_s - at_s > SESSION_GAP_S:
            start = n
        last[one.user] = start, one.at_s
        found.setdefault(start, []).append(n)
    return found


def run(base: str, stream: memory_base.Stream, *, start: int, after: int) -> Run:
    """Fold ratings from ``start`` on, and compare those from ``after`` on."""
    found = Run(["base", "refitted biases", *MEMORIES])
    found.scores = {name: [] for name in found.names}
    policies: dict[str, dict[str, Any]] = {name: {} for name in _needed(base)}
    policies |= {"activity": {"like_from": 8.0}, **{name: {"base": base} for name in MEMORIES}}
    offered = [kind for kind in builtin.register_policies() if kind.name in _needed(base)]
    with (
        tempfile.TemporaryDirectory(prefix="streamfold-memory-") as folder,
        World(Path(folder), [plugin([*offered, Frozen])], policies) as world,
    ):
        items, ratings = events_of(world, stream)
        group = world.group(MEMORIES[0])
        stores = GroupStores(world.context, group, side="fold")
        folds, reads = fold_stores(group, stores), readers(group, stores)
        runtimes = {runtime.instance.name: runtime for runtime in group.runtimes}
        one = next(iter(MEMORIES))
        known = reads[runtimes[one].key]
        servers: dict[str, Any] = {"base": known[base].server}
        for name in MEMORIES:
            key = runtimes[name].key
            servers[name] = runtimes[name].policy.serve(_View(stores.by_runtime[key], reads[key]))  # type: ignore[arg-type]  # its own stores are its view
        biases, sessions = Biases(), sessions_of(stream)
        clock = dict.fromkeys([r.instance.name for r in group.runtimes], 0.0)

        def fold(event: Event) -> None:
            for runtime in group.runtimes:
                if event.type in runtime.handles:
                    began = time.thread_time()
                    fold_one(runtime, event, None, folds[runtime.key])
                    clock[runtime.instance.name] += time.thread_time() - began

        for event in items:
            fold(event)
        clock.update(dict.fromkeys(clock, 0.0))
        for n in range(start, len(ratings)):
            event, rating = ratings[n], stream.ratings[n]
            user = f"u:{rating.user}"
            if n >= after and n in sessions:
                found.sessions.append(_asked(stream, sessions[n], servers, biases, event.at_us))
            for example in known["activity"].server.examples(event, event.recorded_us):
                said = {name: server.score(example) for name, server in servers.items()}
                said["refitted biases"] = biases.score(user, example.item, said["base"])
                biases.learn(user, example.item, said["base"], example.label)
                if n >= after:
                    found.labels.append(example.label)
                    found.users.append(rating.user)
                    for name, score in said.items():
                        found.scores[name].append(score)
            fold(event)
            if n % 1000 == 0:
                stores.drain()
        found.seconds = {name: clock[name] / (len(ratings) - start) for name in clock}
        found.bytes = {
            name: sum(store.state_bytes() for store in stores.by_runtime[runtimes[name].key].values())
            for name in MEMORIES
        }
        stores.close()
    return found


def _needed(base: str) -> set[str]:
    """The policies of a group, with those that the base reads."""
    kinds = {kind.name: kind for kind in builtin.register_policies()}
    needed, todo = {"activity", *MEMORIES}, [base]
    while todo:
        name = todo.pop()
        needed.add(name)
        if name in kinds:
            todo += [read for read in kinds[name]().reads if read not in needed]
    return needed


def _asked(stream: memory_base.Stream, members: list[int], servers: Any, biases: Biases, at_us: int) -> Any:
    """Rank what a session will rate, from the state before it."""
    ratings = [stream.ratings[n] for n in members]
    user, items = ratings[0].user, [one.item for one in ratings]
    request = RankRequest(user=f"u:{user}", item_ids=items, at_us=at_us)
    scores = {name: server.rank(request).scores for name, server in servers.items()}
    pairs = zip(items, scores["base"].tolist(), strict=True)
    scores["refitted biases"] = np.array([biases.score(f"u:{user}", item, base) for item, base in pairs])
    return user, np.array([one.liked for one in ratings]), scores


# -- figures ----------------------------------------------------------------------------------------------------------
def auc(labels: Any, scores: Any, weights: Any) -> float:
    """Weighted area under the curve; ties count half."""
    _, place = np.unique(scores, return_inverse=True)
    good = np.bincount(place, weights * labels)
    bad = np.bincount(place, weights * (1 - labels))
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / (good.sum() * bad.sum()))


def losses(labels: Any, scores: Any) -> Any:
    kept = np.clip(scores, LEAST, 1 - LEAST)
    return -np.log(np.where(labels > 0, kept, 1 - kept))


def per_user(run_: Run, name: str) -> tuple[Any, Any, Any]:
    """(user, AUC, ratings) of each session with likes and dislikes."""
    rows = [
        (user, auc(labels, scores[name], np.ones(len(labels))), len(labels))
        for user, labels, scores in run_.sessions
        if 0 < labels.sum() < len(labels)
    ]
    users, values, sizes = zip(*rows, strict=True)
    return np.array(users), np.array(values), np.array(sizes, float)


def drawn(users: Sequence[str]) -> Iterator[dict[str, int]]:
    """How often each user is in a bootstrap's sample."""
    rng = np.random.default_rng(harness.SEED)
    names = sorted(set(users))
    for _ in range(BOOTSTRAPS):
        yield dict(zip(names, rng.multinomial(len(names), [1 / len(names)] * len(names)).tolist(), strict=True))


def interval(values: Sequence[float]) -> str:
    low, high = np.percentile(values, [2.5, 97.5])
    return f"[{low:+.4f}, {high:+.4f}]"


def report(base: str, made: Run) -> list[dict[str, Any]]:
    """Print a table, and return it as rows."""
    labels, ones = np.array(made.labels), np.ones(len(made.labels))
    scores = {name: np.array(values) for name, values in made.scores.items()}
    users, place = np.unique(np.array(made.users), return_inverse=True)
    sessions = {name: per_user(made, name) for name in made.names}
    gains: dict[str, list[float]] = {name: [] for name in made.names}
    own_gains: dict[str, list[float]] = {name: [] for name in made.names}
    for counts in drawn(users.tolist()):
        weights = np.array([counts[user] for user in users.tolist()], float)[place]
        of_base = auc(labels, scores["base"], weights)
        of_session = np.array([counts[user] for user in sessions["base"][0].tolist()], float)
        for name in made.names[1:]:
            gains[name].append(auc(labels, scores[name], weights) - of_base)
            _, values, sizes = sessions[name]
            own_gains[name].append(float(np.average(values - sessions["base"][1], weights=sizes * of_session)))
    rows = []
    worst = math.log(len(MemoryConfig().lambdas))
    for name in made.names:
        _, values, sizes = sessions[name]
        extra = losses(labels, scores[name]).sum() - losses(labels, scores["base"]).sum()
        rows.append(
            {
                "base": base,
                "scores": name,
                "auc": round(auc(labels, scores[name], ones), 4),
                "gain": interval(gains[name]) if gains[name] else "",
                "log loss": round(float(losses(labels, scores[name]).mean()), 4),
                "nats over base": round(float(extra), 1),
                "within ln N": bool(extra <= worst) if name in MEMORIES else None,
                "per-user auc": round(float(np.average(values, weights=sizes)), 4),
                "per-user gain": interval(own_gains[name]) if own_gains[name] else "",
                "fold us": round(made.seconds.get(name, 0.0) * 1e6, 1),
                "bytes": made.bytes.get(name),
            }
        )
        print(
            "  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items() if value not in ("", None)), flush=True
        )
    print(
        f"  {len(labels)} ratings, {len(sessions['base'][0])} sessions of {int(sessions['base'][2].sum())}", flush=True
    )
    return rows


def spent_alone(stream: memory_base.Stream, repeats: int = 3) -> dict[str, list[float]]:
    """CPU µs an event: one in each call, and 1,000 as a fold gathers them; hashing ids is in it, join and base are not.

    The least of some repeats.
    """
    kinds = {kind.name: kind for kind in builtin.register_policies()}
    examples = []
    for n, one in enumerate(stream.ratings[: len(stream.ratings) // 2]):
        genres, year = stream.items.get(one.item, ([], ""))
        tokens = tuple(sorted([*genres, f"year={year}"]))
        examples.append(Example(n, 0, f"u:{one.user}", one.item, one.liked, one.at_s * 1_000_000, (), tokens))
    found: dict[str, list[float]] = {}
    for name in (*MEMORIES, *MEMORIES * (repeats - 1)):
        some = examples if name != "reloop2_topk" else examples[:20_000]
        spent = [_spent(kinds[name](), some, size) for size in (1, 1000)]
        found[name] = [min(pair) for pair in zip(spent, found.get(name, spent), strict=True)]
    return found


def _spent(policy: Any, examples: list[Example], size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, Any] = {one.name: open_store(one, folder=Path(folder), side="fold") for one in policy.stores}
        base, began = np.full(size, 0.5), 0.0
        for n in range(0, len(examples), size):
            if n == max(size, _WARM):
                began = time.thread_time()
            policy.remember(examples[n : n + size], base, stores)
            for store in stores.values():
                store.keep()
        return (time.thread_time() - began) / (len(examples) - max(size, _WARM)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/movietweetings-100k"))
    parser.add_argument("--base", action="append", help="frozen, or the name of a ranker (may come again)")
    parser.add_argument("--speed", action="store_true", help="what an event costs, and nothing else")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    stream = memory_base.movietweetings(options.data)
    half = len(stream.ratings) // 2
    print(json.dumps(harness.machine(), ensure_ascii=False), flush=True)
    rows = []
    for base in () if options.speed else options.base or ["frozen", "ensemble"]:
        if base == "frozen":
            if not ARTEFACT.exists():
                ARTEFACT.parent.mkdir(exist_ok=True)
                memory_base.save(stream, ARTEFACT)
            said = load_file(ARTEFACT)["said"].tolist()
            Frozen.said = {(f"u:{one.user}", one.item): p for one, p in zip(stream.ratings, said, strict=True)}
        print(f"{base} (load {harness.load()})", flush=True)
        start, after = (half, half) if base == "frozen" else (0, len(stream.ratings) // 10)
        rows += report(base, run(base, stream, start=start, after=after))
    for name, (called, gathered) in spent_alone(stream).items():
        print(f"  {name}: {called:.1f} us an event that is learned by itself, {gathered:.2f} in a thousand", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
