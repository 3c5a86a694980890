"""The default rankers on streams that nothing was chosen on, beside Vowpal Wabbit and river, test then train.

Run: ``python tests/benchmarks/bench_streams.py [--stream movielens drifting] [--only NAME …]``.

``movielens``: MovieLens-100K of GroupLens (for research; not to be passed on, so it is fetched, never committed: the
wheel of ``recbole`` carries it) by time, liked = 4 and more, which is the default; films with genres, users with age
group, gender and occupation. ``drifting``: made here, 40,000 events of 1,500 users and 800 items, whose likes follow
biases and five tastes; at the middle half of the users take over another one's taste, and items' biases are drawn anew.

One group folds ``residual_table`` over ``ensemble`` (of ``count_stack`` and ``factorization``), so that all four score
the same events; ``deepfm`` and ``implicit_ftrl`` are alone in theirs. Defaults throughout, the first tenth is warm-up.
Brackets: 95 % of 500 draws of users, the same for all; differences are paired. Figures are those of ``bench_rankers``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import numpy as np
from bench_rankers import RANKERS, Floats, Folding, Stream, beside, lab_of, means
from ranker_peers import PEERS

from streamfold.core import RankRequest
from streamfold.pipelines.evaluate.intervals import Draws, interval
from streamfold.pipelines.evaluate.metrics import group_auc, log_losses
from streamfold.plugins.residual_table import ResidualTable

BUILD = Path("build")
DRAWS, SEED = 500, 0
TOGETHER = {"residual_table": ("residual_table", "ensemble", "count_stack", "factorization")}
"""Policies whose members are scored, too."""
MAKE: dict[str, Any] = {"residual_table": ResidualTable, "deepfm": RANKERS["deepfm"],
                        "implicit_ftrl": RANKERS["implicit_ftrl"]}  # fmt: skip
Scores = tuple[Floats, Floats]


def movielens() -> Stream:
    """MovieLens-100K, fetched into ``build``."""
    folder = BUILD / "ml-100k"
    if not (folder / "ml-100k.inter").exists():
        fetched = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(BUILD), "recbole==1.2.1"]
        subprocess.run(fetched, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(BUILD.glob("recbole-1.2.1*.whl"))) as wheel:
            for name in ("inter", "item", "user"):
                found = wheel.read(f"recbole/dataset_example/ml-100k/ml-100k.{name}")
                (folder / f"ml-100k.{name}").write_bytes(found)

    def lines(name: str) -> list[list[str]]:
        return [line.split("\t") for line in (folder / f"ml-100k.{name}").read_text("utf-8").splitlines()[1:]]

    films = {id_: {"item_id": id_, "categories": genres.split()} for id_, _, _, genres in lines("item")}
    users = {}
    for id_, age, gender, work, _ in lines("user"):
        facts = {"age": f"{int(age) // 10}0s", "gender": gender, "occupation": work}
        users[id_] = {"user_id": id_, "properties": facts}
    rows = [(int(float(at)), n, user, film, float(rating)) for n, (user, film, rating, at) in enumerate(lines("inter"))]
    return Stream(films, users, rows, 4.0)


def drifting(events: int = 40_000, users: int = 1_500, items: int = 800, seed: int = 11) -> Stream:
    """A stream whose truth is known, and changes at the middle."""
    rng = np.random.default_rng(seed)
    genres = [f"g{k}" for k in range(8)]
    of_item = [sorted(rng.choice(genres, rng.integers(1, 4), replace=False).tolist()) for _ in range(items)]
    taste, kind = rng.normal(0, 0.7, (users, 5)), rng.normal(0, 0.7, (8, 5))
    vectors = np.array([np.mean([kind[int(g[1:])] for g in of], axis=0) for of in of_item])
    vectors += rng.normal(0, 0.4, vectors.shape)
    of_users, of_items = rng.normal(0, 0.8, users), rng.normal(0, 0.8, items)
    often = 1 / np.arange(1, items + 1) ** 0.8
    rows = []
    for n in range(events):
        if n == events // 2:
            changed = rng.permutation(users)[: users // 2]
            taste[changed] = taste[rng.permutation(changed)]
            of_items = rng.normal(0, 0.8, items)
        u, i = int(rng.integers(users) * rng.random()), int(rng.choice(items, p=often / often.sum()))
        odds = of_users[u] + of_items[i] + taste[u] @ vectors[i]
        rows.append(
            (1_600_000_000 + 300 * n, n, f"{u}", f"{i}", 5.0 if rng.random() < 1 / (1 + np.exp(-odds)) else 1.0)
        )
    films = {f"{i}": {"item_id": f"{i}", "categories": of} for i, of in enumerate(of_item)}
    return Stream(films, {}, rows, 4.0)


STREAMS: dict[str, Callable[[], Stream]] = {"movielens": movielens, "drifting": drifting}


def folded(name: str, stream: Stream) -> dict[str, Scores]:
    """Score and fold the whole stream: a policy, and those of its members that are shown."""
    make, shown = MAKE[name], TOGETHER.get(name, (name,))
    known, ratings = stream.events()
    found = {one: (np.zeros(len(ratings)), np.full(len(ratings), np.nan)) for one in shown}
    with lab_of(make, stream.like_from, shown[1:]) as lab:
        folding = Folding(make, lab)
        servers = {one: folding.server_of(one) for one in shown}
        for event in known:
            folding.fold(event)
        for j, event in enumerate(ratings):
            if j in stream.sessions:
                rows = stream.sessions[j]
                items = [stream.rows[k][3] for k in rows]
                asked = RankRequest(user=f"u:{stream.rows[j][2]}", item_ids=items, at_us=event.at_us)
                for one, server in servers.items():
                    found[one][1][rows] = server.rank(asked).scores
            [example] = folding.activity.examples(event, event.recorded_us)
            for one, server in servers.items():
                found[one][0][j] = server.score(example)
            folding.fold(event)
            if j % 500 == 499:
                folding.commit()
    return found


def report(stream: Stream, found: Mapping[str, Scores]) -> None:
    """Print figures with their intervals, and differences from ``ensemble``."""
    tested = np.flatnonzero(stream.tested)
    users = np.unique([stream.rows[j][2] for j in tested], return_inverse=True)[1]
    labels, draws = stream.labels[tested], Draws(int(users.max()) + 1, DRAWS, SEED)
    rows, groups = _sessions(stream, users)
    aucs, losses, grouped = {}, {}, {}
    for name, (scores, in_session) in found.items():
        figures = stream.figures(scores, in_session)
        of_groups = group_auc(groups, stream.labels[rows], in_session[rows])
        owners = users[np.searchsorted(tested, rows)][np.unique(groups, return_index=True)[1]]
        aucs[name] = draws.auc(users, labels, scores[tested])
        losses[name] = draws.mean(users, log_losses(labels, scores[tested]))
        grouped[name] = draws.group_auc(owners, of_groups)
        said = [
            _said(figures["auc"], aucs[name]),
            _said(figures["log_loss"], losses[name]),
            f"{figures['calibration']:.4f}",
            _said(figures["session_auc"], grouped[name]),
            " / ".join(f"{figures[key]:.3f}" for key in ("new_users", "new_items", "new_both")),
        ]
        print(f"| {name} | {' | '.join(said)} |", flush=True)
    for name in found if "ensemble" in found else ():
        if name != "ensemble":
            apart = [of["ensemble"] - of[name] for of in (aucs, losses, grouped)]
            print(f"ensemble − {name}: AUC, log loss, within sessions: {', '.join(map(_apart, apart))}", flush=True)


def _sessions(stream: Stream, users: Any) -> tuple[Any, Any]:
    """Rows of the sessions that have both labels, in order, and which session each is of."""
    pairs = sorted((j, n) for n, members in enumerate(stream.sessions.values()) for j in members)
    rows, groups = (np.array(column) for column in zip(*pairs, strict=True))
    return rows, groups


def _said(value: float, drawn: Floats) -> str:
    _, low, high = interval(value, drawn)
    return f"{value:.4f} ({low:.3f}–{high:.3f})"


def _apart(drawn: Floats) -> str:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{drawn.mean():+.4f} ({low:+.4f}…{high:+.4f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stream", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--only", nargs="+", choices=[*MAKE, *PEERS], default=[*MAKE, *PEERS])
    given = parser.parse_args(arguments)
    for name in given.stream:
        stream = STREAMS[name]()
        users, items = (len({row[column] for row in stream.rows}) for column in (2, 3))
        liked, tested = stream.labels[stream.tested].mean(), int(stream.tested.sum())
        sessions = len(stream.sessions), sum(map(len, stream.sessions.values()))
        print(
            f"{name}: {len(stream.rows)} events, {users} users, {items} items; {tested} tested, {liked:.1%} liked; "
            f"{sessions[0]} sessions of {sessions[1]} events; load {harness.load()}", flush=True,
        )  # fmt: skip
        found: dict[str, Scores] = {"user x item mean": means(stream, user_too=True)}
        for one in given.only:
            start = time.process_time()
            found |= {one: beside(PEERS[one](), stream)} if one in PEERS else folded(one, stream)
            print(f"  {one}: {time.process_time() - start:.0f} s of CPU", flush=True)
        report(stream, found)


if __name__ == "__main__":
    main()
