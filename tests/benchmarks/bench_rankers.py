"""Rankers, test then train: every event is scored before it is folded, through the policies as they are folded live.

Run: ``python tests/benchmarks/bench_rankers.py [--data FOLDER] [--events N] [--years] [--texts ENCODER]``. The stream
is MovieTweetings-100K by time, like = rating ≥ 8, the first tenth is warm-up; films come with their genres before all
(``--years`` adds the year of release as a property, ``--texts`` titles, embedded for who reads them). Default
configurations throughout; ``user x item mean`` and ``item mean`` are computed beside them, with ``--peers`` Vowpal
Wabbit and river, too; ``--race`` measures the speed of learning of all of these, and nothing else. They are installed
by ``pip install -e .[bench,test]``. One thread; seconds of CPU.

Figures: AUC, log loss, calibration error (20 bins of equal mass), AUC of the first events of users, of items, and of
both at once; and AUC within sessions: tested events of a user with gaps of up to a day, all scored from the state
before the first of them, sessions with both labels weighed by their events. A score that knows the user alone is worth
.500 there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from ranker_peers import PEERS, SAME_CLASS, Peer, speed

from streamfold.core import Event, Example, Policy, RankRequest
from streamfold.core.events import builtin_types
from streamfold.core.fold.one import fold_one
from streamfold.core.fold.stores import FoldStores, fold_stores
from streamfold.core.testing import Lab
from streamfold.core.testing.lab import Case
from streamfold.plugins import builtin, hashing, minilm
from streamfold.plugins._codes import taken
from streamfold.plugins.count_stack import CountStack
from streamfold.plugins.deepfm import Deepfm
from streamfold.plugins.ensemble import Ensemble, EnsembleConfig
from streamfold.plugins.factorization import Factorization
from streamfold.plugins.implicit_ftrl import ImplicitFtrl

Floats = npt.NDArray[np.float64]
DATA = Path(__file__).parents[3] / "shared/data/movietweetings-100k"
DAY_S = 86_400
TYPES = {kind.name: kind for kind in builtin_types()}
BARS = {
    "auc": (0.7855, 0.787), "log_loss": (0.5576, 0.555), "calibration": (0.015, 0.007), "session_auc": (0.722, 0.73),
    "new_users": (0.723, None), "new_items": (0.767, None), "new_both": (0.655, None),
}  # fmt: skip

KERNELS = ("count_stack", "factorization", "implicit_ftrl")
Make = Callable[[], Policy]
ENCODERS: dict[str, Callable[[], Any]] = {"hashing": hashing.Hashing, "minilm": lambda: minilm.BACKEND.make({})}
RANKERS: dict[str, Make] = {
    **{kind.name: kind for kind in (CountStack, Factorization, Deepfm, ImplicitFtrl, Ensemble)},
    "ensemble of count_stack, deepfm": lambda: Ensemble(EnsembleConfig(members=("count_stack", "deepfm"))),
}


class Stream:
    """The events, and what figures are taken over.

    Parameters
    ----------
    items, users : data of ``item.upserted`` and ``user.upserted``, by id.
    rows : (seconds, number, user, item, rating).
    like_from : what is rated so is liked.
    """

    def __init__(
        self,
        items: Mapping[str, dict[str, Any]],
        users: Mapping[str, dict[str, Any]],
        rows: Sequence[tuple[int, int, str, str, float]],
        like_from: float,
    ) -> None:
        self.items, self.users, self.like_from = items, users, like_from
        self.rows = sorted(rows)
        self.labels = np.array([row[4] >= like_from for row in self.rows], float)
        self.new_user, self.new_item = self._firsts(2), self._firsts(3)
        self.tested = np.arange(len(self.rows)) >= len(self.rows) // 10
        self.sessions = self._sessions()

    def _firsts(self, column: int) -> npt.NDArray[np.bool_]:
        met: set[Any] = set()
        return np.array([row[column] not in met and not met.add(row[column]) for row in self.rows])  # type: ignore[func-returns-value]

    def _sessions(self) -> dict[int, list[int]]:
        """Tested sessions with both labels, by their first event."""
        last: dict[str, tuple[int, int]] = {}
        members: dict[int, list[int]] = defaultdict(list)
        for j, (at, _, user, _, _) in enumerate(self.rows):
            if not self.tested[j]:
                continue
            start = last[user][1] if user in last and at - last[user][0] <= DAY_S else j
            last[user] = at, start
            members[start].append(j)
        return {start: found for start, found in members.items() if 0 < self.labels[found].sum() < len(found)}

    def events(self) -> tuple[list[Event], list[Event]]:
        """Items and users, and ratings."""
        first_us = self.rows[0][0] * 1_000_000 - 1
        told = [("item.upserted", one) for one in self.items.values()]
        told += [("user.upserted", one) for one in self.users.values()]
        known = [_event(n, type_, first_us, one) for n, (type_, one) in enumerate(told, 1)]
        ratings = [
            _event(
                len(known) + n, "interaction.observed", at * 1_000_000,
                {"user_id": user, "item_id": item, "action": "rating", "value": value},
            )
            for n, (at, _, user, item, value) in enumerate(self.rows, 1)
        ]  # fmt: skip
        return known, ratings

    def examples(self) -> list[Example]:
        """What rankers learn of the ratings."""
        of_items, of_users = ({id_: _tokens(one) for id_, one in known.items()} for known in (self.items, self.users))
        return [
            Example(
                n, 0, f"u:{user}", item, float(value >= self.like_from), at * 1_000_000, of_users.get(user, ()),
                of_items.get(item, ()),
            )
            for n, (at, _, user, item, value) in enumerate(self.rows)
        ]  # fmt: skip

    def figures(self, scores: Floats, in_session: Floats) -> dict[str, float]:
        """Figures of scores; ``in_session``: those from before each event's session."""
        y, p, tested = self.labels, scores, self.tested
        clipped = np.clip(p[tested], 1e-6, 1 - 1e-6)
        bins = np.array_split(np.argsort(p[tested], kind="stable"), 20)
        off = [abs(y[tested][one].mean() - p[tested][one].mean()) * len(one) for one in bins]
        found = [np.array(rows) for rows in self.sessions.values()]

        def of(mask: npt.NDArray[np.bool_]) -> float:
            return auc(y[mask & tested], p[mask & tested])

        return {
            "auc": auc(y[tested], p[tested]),
            "log_loss": float(-np.where(y[tested] > 0, np.log(clipped), np.log(1 - clipped)).mean()),
            "calibration": sum(off) / tested.sum(),
            "session_auc": sum(len(s) * auc(y[s], in_session[s]) for s in found) / sum(len(s) for s in found),
            "new_users": of(self.new_user),
            "new_items": of(self.new_item),
            "new_both": of(self.new_user & self.new_item),
        }


def movietweetings(folder: Path, most: int = 1 << 60, *, years: bool = False, texts: bool = False) -> Stream:
    """MovieTweetings by time; ``years``, ``texts``: films have years and titles."""
    films = {}
    for line in (folder / "movies.dat").read_text(encoding="utf-8").splitlines():
        film, title, genres = line.split("::")
        year = {"year": int(title[-5:-1])} if years and title[-5:-1].isdigit() else {}
        films[film] = {"item_id": film, "categories": [g for g in genres.split("|") if g], "properties": year}
        if texts:
            films[film]["title"] = title
    rows = []
    for n, line in enumerate((folder / "ratings.dat").read_text().splitlines()):
        user, film, rating, at = line.split("::")
        rows.append((int(at), n, user, film, float(rating)))
    return Stream(films, {}, sorted(rows)[:most], 8.0)


def _tokens(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What an item or user is told by, as ``activity`` does."""
    facts = {f"{name}={value}" for name, value in data.get("properties", {}).items()}
    return tuple(sorted({*data.get("categories", ()), *facts}))


def _event(seq: int, type_: str, at_us: int, data: dict[str, Any]) -> Event:
    kind = TYPES[type_]
    value = msgspec.convert(data, kind.data)
    return Event(
        seq=seq, type=type_, source="bench", id=str(seq), subject=kind.subjects(value)[0], data=value, time_us=at_us,
        recorded_us=at_us,
    )  # fmt: skip


def auc(labels: Floats, scores: Floats) -> float:
    """Area under the ROC curve; ties count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ones = labels.sum()
    return float((ranks[labels > 0].sum() - ones * (ones + 1) / 2) / (ones * (len(labels) - ones)))


class Folding:
    """A policy with those it reads, folded in process as one group.

    ``encoder``: what items are embedded with; None: as if they had no texts.
    """

    def __init__(self, make: Make, lab: Lab, encoder: Any = None) -> None:
        self._tools: Any = None if encoder is None else SimpleNamespace(encoder=encoder)
        bench = lab.bench(side="both")
        self._live = bench.live
        named = fold_stores(bench.group, bench.live)
        self._members = [(r, named[r.key]) for r in bench.group.runtimes]
        self.policy: Any = bench.policy
        self.stores: FoldStores = named[bench.runtime.key]
        self.server: Any = self.policy.serve(self.stores)
        self.activity: Any = self.stores.of("activity").server

    def server_of(self, name: str) -> Any:
        """A member's server on the fold's side."""
        [(runtime, stores)] = [(r, stores) for r, stores in self._members if r.instance.name == name]
        return runtime.policy.serve(stores)  # type: ignore[arg-type]  # its stores are its view here

    def fold(self, event: Event, prepared: Mapping[str, Any] | None = None) -> None:
        """Fold as the group's fold does, without log and lease."""
        for runtime, stores in self._members:
            if event.type in runtime.handles:
                fold_one(runtime, event, (prepared or {}).get(runtime.key), stores)

    def fold_items(self, items: Sequence[Event]) -> None:
        """Fold items, embedded if there is an encoder."""
        preparing = [r for r, _ in self._members if r.prepares] if self._tools is not None else []
        made = {r.key: r.policy.prepare_batch(items, self._tools) for r in preparing}
        for n, event in enumerate(items):
            self.fold(event, {key: values[n] for key, values in made.items()})

    def commit(self) -> None:
        self._live.drain()


def test_then_train(
    make: Make, stream: Stream, events: tuple[list[Event], list[Event]], encoder: Any
) -> dict[str, float]:
    """Score and fold the whole stream."""
    with lab_of(make, stream.like_from) as lab:
        folding = Folding(make, lab, encoder)
        items, ratings = events
        folding.fold_items(items)
        folding.commit()
        scores, in_session = np.zeros(len(ratings)), np.full(len(ratings), np.nan)
        spent, server = 0.0, folding.server
        for j, event in enumerate(ratings):
            user = f"u:{stream.rows[j][2]}"
            if j in stream.sessions:
                rows = stream.sessions[j]
                asked = RankRequest(user=user, item_ids=[stream.rows[k][3] for k in rows], at_us=event.at_us)
                in_session[rows] = server.rank(asked).scores
            [example] = folding.activity.examples(event, event.recorded_us)
            scores[j] = server.score(example)
            start = time.process_time()
            folding.fold(event)
            spent += time.process_time() - start
            if j % 500 == 499:
                start = time.process_time()
                folding.commit()
                spent += time.process_time() - start
        return stream.figures(scores, in_session) | {"stack_events_s": len(ratings) / spent}


def learning(make: Make, stream: Stream, items: Sequence[Event], encoder: Any) -> dict[str, float]:
    """How many examples a second ``learn`` takes, alone, 1,000 at a time."""
    examples, best = stream.examples(), 0.0
    for _ in range(3):
        with lab_of(make, stream.like_from) as lab:
            folding = Folding(make, lab, encoder)
            folding.fold_items(items)
            folding.policy.learn(examples[:10], folding.stores)
            start = time.process_time()
            for n in range(0, len(examples), 1000):
                folding.policy.learn(examples[n : n + 1000], folding.stores)
                for name in (one.name for one in folding.policy.stores):
                    folding.stores[name].keep()
            best = max(best, len(examples) / (time.process_time() - start))
            folding.commit()
    return {"learn_events_s": best}


def lab_of(make: Make, like_from: float, also: Sequence[str] = ()) -> Lab:
    """Where a policy in its default configuration is folded with those it reads; ``also``: and those which these do."""
    policies: dict[str, dict[str, Any]] = {"activity": {"like_from": like_from}, **{name: {} for name in also}}
    return Lab(Case(make=make, plugins=(builtin,), policies=policies))


def means(stream: Stream, user_too: bool) -> tuple[Floats, Floats]:
    """The mean of an item, times that of the user (in log-odds), each shrunk with five examples of the whole."""
    counts: dict[str, list[float]] = {}
    whole = [1.0, 2.0]

    def score(user: str, film: str) -> float:
        p = whole[0] / whole[1]
        z = 0.0
        for key in (f"u{user}", f"i{film}")[0 if user_too else 1 :]:
            likes, n = counts.get(key, (0.0, 0.0))
            q = (likes + 5 * p) / (n + 5)
            z += np.log(q / (1 - q)) - np.log(p / (1 - p))
        return float(1 / (1 + np.exp(-z - np.log(p / (1 - p)))))

    scores, in_session = np.zeros(len(stream.rows)), np.full(len(stream.rows), np.nan)
    for j, (_, _, user, film, _) in enumerate(stream.rows):
        for k in stream.sessions.get(j, ()):
            in_session[k] = score(user, stream.rows[k][3])
        scores[j] = score(user, film)
        for row in (whole, counts.setdefault(f"u{user}", [0.0, 0.0]), counts.setdefault(f"i{film}", [0.0, 0.0])):
            row[0] += stream.labels[j]
            row[1] += 1
    return scores, in_session


def beside(peer: Peer, stream: Stream) -> tuple[Floats, Floats]:
    """Score and learn the whole stream in another learner."""
    told = [peer.told(one) for one in stream.examples()]
    scores, in_session = np.zeros(len(told)), np.full(len(told), np.nan)
    for j, one in enumerate(told):
        for k in stream.sessions.get(j, ()):
            in_session[k] = peer.predict(told[k])
        scores[j] = peer.take(one, stream.labels[j])
    return scores, in_session


def race(stream: Stream, repeats: int) -> None:
    """How fast each of ours and each peer takes the same examples, and how many times as fast ours is.

    Ours take them from two starting points, too: from codes, as a peer from its line or dictionary; and from ids and
    tokens as a fold has them, so that hashing is in the time.
    """
    examples = stream.examples()
    ours = {}
    for name in KERNELS:
        ours[name] = _speed(name, examples, repeats, ready=True)
        ours[f"{name}, from ids"] = _speed(name, examples, repeats, ready=False)
    theirs = {name: speed(make, examples, repeats) for name, make in PEERS.items()}
    print("| events per CPU second | " + " | ".join(f"`{name}` {rate:,.0f}" for name, rate in ours.items()) + " |")
    for name, rate in theirs.items():
        print(f"| {name}: {rate:,.0f} | " + " | ".join(f"{one / rate:.1f} ×" for one in ours.values()) + " |")
    for name, peer in SAME_CLASS.items():
        print(f"{name}: {ours[name] / theirs[peer]:.1f} × {peer} (bar 20), {ours[f'{name}, from ids']:,.0f} from ids")


def _speed(name: str, examples: Sequence[Example], repeats: int, *, ready: bool) -> float:
    """How many examples a second are learned, 1,000 in a call; ``ready``: taken apart before the clock starts."""
    best = 0.0
    batches = [examples[n : n + 1000] for n in range(0, len(examples), 1000)]
    with lab_of(RANKERS[name], 8.0) as lab:
        Folding(RANKERS[name], lab).policy.learn(examples[:10], Folding(RANKERS[name], lab).stores)  # compiles
    for _ in range(repeats):
        with lab_of(RANKERS[name], 8.0) as lab:
            folding = Folding(RANKERS[name], lab)
            policy, stores = folding.policy, folding.stores
            coded = [taken(batch) for batch in batches] if ready else []
            start = time.process_time()
            for n, batch in enumerate(batches):
                if ready:
                    policy.learn_coded(*coded[n], stores)
                else:
                    policy.learn(batch, stores)
                for one in policy.stores:
                    stores[one.name].keep()
            best = max(best, len(examples) / (time.process_time() - start))
            folding.commit()
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--events", type=int, default=1 << 60)
    parser.add_argument("--years", action="store_true")
    parser.add_argument("--texts", choices=["hashing", "minilm"], help="films have titles, embedded by this encoder")
    parser.add_argument("--peers", action="store_true", help="Vowpal Wabbit and river, too")
    parser.add_argument("--race", action="store_true", help="speed of learning beside theirs, nothing else")
    parser.add_argument("--only", nargs="+", default=list(RANKERS), choices=list(RANKERS))
    given = parser.parse_args(arguments)
    stream = movietweetings(given.data, given.events, years=given.years, texts=bool(given.texts))
    encoder = ENCODERS[given.texts]() if given.texts else None
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {len(stream.rows)} events"
    )
    if given.race:
        race(stream, 3)
        return
    events = stream.events()
    rows = {
        "item mean": stream.figures(*means(stream, user_too=False)),
        "user x item mean": stream.figures(*means(stream, user_too=True)),
    }
    _show(rows)
    for name, peer in PEERS.items() if given.peers else ():
        rows[name] = stream.figures(*beside(peer(), stream))
        _show({name: rows[name]})
    for name, make in ((name, RANKERS[name]) for name in given.only):
        found = test_then_train(make, stream, events, encoder)
        if not name.startswith("ensemble"):
            found |= learning(make, stream, events[0], encoder)
        rows[name] = found
        _show({name: found})
    for name, (bar, aim) in BARS.items() if "ensemble" in rows else ():
        print(f"{name}: {rows['ensemble'][name]:.4f} (bar {bar}, aim {aim})")
    print(json.dumps(rows))


def _show(rows: dict[str, dict[str, float]]) -> None:
    for name, found in rows.items():
        said = (f"{key} {value:.4f}" if value < 2 else f"{key} {value:,.0f}" for key, value in found.items())
        print(f"{name}: " + ", ".join(said), flush=True)


if __name__ == "__main__":
    main()
