"""Faults that need no process: deliveries doubled and reordered, zombies, poison, failing policies, bad checkpoints."""

from __future__ import annotations

import errno
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LONG_S,
    SEED,
    Event,
    Load,
    check_everything,
    check_state,
    is_caught_up,
    open_node,
    wait_for,
    write_settings,
)

from streamfold.core import Event as Folded
from streamfold.core import EventError, Policy, Prepared, Stores, Table, hookimpl
from streamfold.core.clock import ManualClock
from streamfold.core.context import Context, Group
from streamfold.core.errors import Fenced, IntakeConflict
from streamfold.core.events import Acceptor, NewEvent, decode_http
from streamfold.core.events.codecs import BATCH
from streamfold.core.fold import FoldRunner, GroupFold, MemoryPrepared, verify_group
from streamfold.core.fold import checkpoint as checkpoints
from streamfold.core.fold.stores import GroupStores, recover
from streamfold.core.ledger import Ledger, open_ledger
from streamfold.core.ledger.abc import IntakeMove
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings, load_settings
from streamfold.core.stores.checkpoint import write_checkpoint
from streamfold.pipelines.node import Node
from streamfold.plugins import builtin

NOW_US = 1_800_000_000_000_000
W = "default"


def moody(trouble: Callable[[Folded], None]) -> type[Policy]:
    """A policy that counts interactions per item, and does what ``trouble`` says before."""

    class Moody(Policy):
        name = "moody"
        version = 1
        handles = ("interaction.observed",)
        stores = (Table("seen", key=str, value=int, max_rows=1000),)

        def fold(self, event: Folded, prepared: Prepared, stores: Stores) -> None:
            seen, item = stores["seen"], event.data.item_id
            seen.put(item, (seen.get(item) or 0) + 1)  # before the trouble: it must leave no trace
            trouble(event)

    return Moody


class Plugin:
    def __init__(self, *kinds: type[Policy]) -> None:
        self.kinds = list(kinds)

    @hookimpl
    def register_policies(self) -> list[type[Policy]]:
        return self.kinds


class Bench:
    """A ledger, and as many contexts (processes, so to speak) on it as asked for, under one clock."""

    def __init__(self, settings: Settings, folder: Path, kinds: Sequence[type[Policy]] = ()) -> None:
        self.settings, self.folder, self.kinds = settings, folder, kinds
        self.clock = ManualClock(NOW_US)
        self.ledger: Ledger = open_ledger(settings.ledger_url)
        self.contexts: list[Context] = []
        self.context = self.another()
        self.context.pin(W)
        self.acceptor = Acceptor(self.context.registry.event_types, self.clock)

    def another(self) -> Context:
        scratch = self.folder / f"scratch-{len(self.contexts)}"
        scratch.mkdir(parents=True)
        registry = Registry(self.settings, [builtin, Plugin(*self.kinds)])
        made = Context(
            settings=self.settings, registry=registry, ledger=self.ledger, clock=self.clock, scratch=scratch,
            owner=f"owner-{len(self.contexts)}",
        )  # fmt: skip
        self.contexts.append(made)
        return made

    def accepted(self, events: Sequence[Event]) -> list[NewEvent]:
        import msgspec

        raws = decode_http(BATCH, {}, msgspec.json.encode(events))
        found = self.acceptor.accept_many(raws)
        assert all(isinstance(event, NewEvent) for event in found), found
        return found  # type: ignore[return-value]  # just asserted

    def append(self, events: Sequence[Event], *moves: IntakeMove) -> list[int]:
        done = self.ledger.append(W, self.accepted(events), recorded_us=self.clock.now_us(), moves=moves)
        return done.positions

    def group(self, name: str, context: Context | None = None) -> Group:
        return (context or self.context).group(W, name)

    def fold(self, name: str, context: Context | None = None) -> GroupFold:
        context = context or self.context
        return GroupFold(context, W, self.group(name, context), MemoryPrepared(context))

    def table(self, name: str, store: str) -> dict[str, Any]:
        """The rows of a table as the ledger and the checkpoints have them."""
        group = self.group(name)
        stores = GroupStores(self.context, group, side="view")
        try:
            recover(self.context, W, group, stores)
            return dict(stores.by_runtime[group.runtimes[0].key][store].items())
        finally:
            stores.close()

    def assert_verified(self, *names: str) -> None:
        for name in names:
            verdict = verify_group(self.context, W, self.group(name))
            assert verdict.equal, verdict.differences


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(write_settings(tmp_path, policies={"trending": {}, "moody": {}}))


@pytest.fixture
def bench_of(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(trouble: Callable[[Folded], None] = lambda event: None, **changes: Any) -> Bench:
        made.append(Bench(settings.model_copy(update=changes), tmp_path, [moody(trouble)]))
        return made[-1]

    yield make
    for bench in made:
        bench.ledger.close()


def clicks(count: int, *, start: int = 0) -> list[Event]:
    return [
        {
            "specversion": "1.0", "id": f"c{n}", "source": "faults", "type": "interaction.observed",
            "data": {"user_id": "u", "item_id": f"i{n % 5}", "action": "click"},
        }
        for n in range(start, start + count)
    ]  # fmt: skip


def counts(events: Sequence[Event]) -> dict[str, int]:
    return dict(Counter(event["data"]["item_id"] for event in events))


def run_until(runner: FoldRunner, true: Callable[[], bool], timeout_s: float = LONG_S) -> None:
    def step() -> bool:
        runner.run(W)
        return true()

    wait_for("the fold", step, timeout_s)


# -- delivery ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_doubled_deliveries_have_one_effect(tmp_path: Path, seed: int) -> None:
    """Batches that overlap, repeat and repeat within themselves: as if each event had come once."""
    print(f"seed={seed}")
    rng = random.Random(seed)
    settings = load_settings(write_settings(tmp_path))
    events = Load("d", seed).batch(400)
    node = open_node(settings)
    try:
        node.context.pin(W)
        bench = _acceptor(node)
        done = 0
        while done < len(events):
            end = min(len(events), done + rng.randint(1, 60))
            batch = events[max(0, done - rng.randint(0, 50)) : end]
            bench(batch + rng.choices(batch, k=rng.randint(0, 5)))
            done = end
        bench(rng.sample(events, 100))  # long after, in any order
    finally:
        node.close()
    check_everything(settings, events)


def _acceptor(node: Node) -> Callable[[Sequence[Event]], None]:
    import msgspec

    def append(events: Sequence[Event]) -> None:
        found = node.acceptor.accept_many(decode_http(BATCH, {}, msgspec.json.encode(events)))
        good = [event for event in found if isinstance(event, NewEvent)]
        assert len(good) == len(events)
        node.ledger.append(W, good, recorded_us=node.context.clock.now_us())

    return append


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_reordered_deliveries_end_at_the_highest_sequence(tmp_path: Path, seed: int) -> None:
    """Events with ``sequence`` in any order, doubled: every document ends at its newest, clicks are all counted."""
    print(f"seed={seed}")
    rng = random.Random(seed)
    settings = load_settings(write_settings(tmp_path))
    events = Load("r", seed, documents=8).batch(300)
    for number, event in enumerate(events):
        if event["type"].startswith("document"):
            event["sequence"] = number
    delivered = events + rng.sample(events, 100)
    rng.shuffle(delivered)
    node = open_node(settings)
    try:
        node.context.pin(W)
        append = _acceptor(node)
        while delivered:
            size = rng.randint(1, 40)
            append(delivered[:size])
            delivered = delivered[size:]
    finally:
        node.close()
    check_everything(settings, events)


# -- zombies ----------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["sqlite", "postgres"])
def any_ledger(request: pytest.FixtureRequest, bench_of: Callable[..., Bench], settings: Settings) -> Bench:
    if request.param == "sqlite":
        return bench_of()
    url = request.getfixturevalue("postgres_database")
    return bench_of(ledger=settings.ledger.model_copy(update={"url": url}))


def test_a_zombie_consumer_writes_nothing(any_ledger: Bench) -> None:
    """After a rebalance two consumers hold the same records: the second to append is refused, wholly."""
    bench = any_ledger
    events = clicks(30)
    bench.append(events[:10], IntakeMove(intake="kafka:x:t:0", expect=None, next=10))
    bench.append(events[10:20], IntakeMove(intake="kafka:x:t:0", expect=10, next=20))
    for zombie in (events[10:25], events[20:30]):  # what the other one took, and beyond it
        with pytest.raises(IntakeConflict):
            bench.append(zombie, IntakeMove(intake="kafka:x:t:0", expect=10, next=30))
    page = bench.ledger.read(W, 0, 100)
    assert len(page.rows) == 20
    assert [state.next_offset for state in bench.ledger.intakes(W)] == [20]
    bench.append(events[20:], IntakeMove(intake="kafka:x:t:0", expect=20, next=30))
    fold = bench.fold("moody")
    assert fold.turn().events == 30
    assert bench.table("moody", "seen") == counts(events)
    fold.release()


def test_a_stale_fold_owner_is_fenced(any_ledger: Bench) -> None:
    """A owner that sleeps past its lease finds another in its place: its commit is refused, its work is not doubled."""
    bench = any_ledger
    events = clicks(60)
    a, b = bench.fold("moody"), bench.fold("moody", bench.another())
    bench.append(events[:20])
    assert a.turn().events == 20
    bench.append(events[20:40])
    assert not b.acquire()  # a's lease stands
    bench.clock.advance(bench.settings.fold.lease_s + 1)
    assert b.turn().events == 20
    commits = bench.ledger.watermarks(W)[bench.group("moody").name]
    bench.append(events[40:])
    woken = a.turn()  # it believes in its lease, folds 40 events on its warm stores, and may not commit
    assert woken.events == 0
    assert a.lease is None
    assert bench.ledger.watermarks(W)[bench.group("moody").name] == commits
    assert a.turn().events == 0  # b's lease stands
    assert b.turn().events == 20
    assert bench.table("moody", "seen") == counts(events)
    bench.clock.advance(bench.settings.fold.lease_s + 1)
    bench.append(more := clicks(10, start=60))
    assert a.turn().events == 10  # recovered from what b committed
    assert bench.table("moody", "seen") == counts(events + more)
    bench.assert_verified("moody")
    a.release()
    b.drop()


def test_a_stale_owner_may_not_point_to_its_checkpoint(any_ledger: Bench) -> None:
    bench = any_ledger
    a, b = bench.fold("moody"), bench.fold("moody", bench.another())
    bench.append(clicks(20))
    a.turn()
    stale = a.lease
    assert stale is not None
    bench.clock.advance(bench.settings.fold.lease_s + 1)
    bench.append(clicks(10, start=20))
    b.turn()
    with pytest.raises(Fenced):
        bench.ledger.set_checkpoint(W, stale, name="stale", commit_no=stale.commit_no, watermark=stale.watermark)
    assert checkpoints.checkpoint_group(bench.context, W, bench.group("moody"), stale) == 0
    assert bench.ledger.group(W, bench.group("moody").name).checkpoint is None
    assert bench.table("moody", "seen") == counts(clicks(30))
    a.drop()
    b.release()


# -- poison and failing policies --------------------------------------------------------------------------------------
def test_a_poison_event_is_one_dead_letter(bench_of: Callable[..., Bench]) -> None:
    """``EventError`` skips the event for that policy alone; the letter is committed with the watermark."""

    def trouble(event: Folded) -> None:
        if event.id == "c7":
            raise EventError("seven is poison", code="poison")

    bench = bench_of(trouble)
    events = clicks(20)
    positions = bench.append(events)
    fold, other = bench.fold("moody"), bench.fold("trending")
    fold.turn()
    other.turn()
    letters = bench.ledger.dead_letters(W)
    assert [(x.policy, x.position, x.event_id, x.code, x.stage) for x in letters] == [
        ("moody@1", positions[7], "c7", "poison", "fold")
    ]
    state = bench.ledger.group(W, bench.group("moody").name)
    assert (state.watermark, state.halted) == (positions[-1], None)
    assert bench.table("moody", "seen") == counts([e for e in events if e["id"] != "c7"])
    assert set(bench.table("trending", "score_0")) == set(counts(events))
    fold.drop()  # a new owner honours the recorded skip
    bench.append(clicks(5, start=20))
    fold.turn()
    assert len(bench.ledger.dead_letters(W)) == 1
    bench.assert_verified("moody", "trending")
    fold.release()
    other.release()


def test_a_policy_that_raises_once_halts_and_recovers(bench_of: Callable[..., Bench]) -> None:
    raised: list[int] = []

    def trouble(event: Folded) -> None:
        if event.id == "c7" and not raised:
            raised.append(event.seq)
            raise RuntimeError("a hiccup")

    bench = bench_of(trouble)
    events = clicks(20)
    positions = bench.append(events)
    runner = FoldRunner(bench.context, MemoryPrepared(bench.context))
    name = bench.group("moody").name
    run_until(runner, lambda: bool(raised))
    # What comes before the failing event is committed first; then the event itself is tried again.
    run_until(runner, lambda: bench.ledger.watermarks(W)[name][0] == positions[-1])
    run_until(runner, lambda: bench.ledger.group(W, name).halted is None)
    assert bench.table("moody", "seen") == counts(events)
    assert bench.ledger.dead_letters(W) == []
    bench.assert_verified("moody", "trending")
    runner.stop()


def test_a_policy_that_raises_twice_is_halted_backs_off_and_recovers(bench_of: Callable[..., Bench]) -> None:
    """The second failure is of the event alone: now the group is red for half a second."""
    raised: list[float] = []

    def trouble(event: Folded) -> None:
        if event.id == "c7" and len(raised) < 2:
            raised.append(time.monotonic())
            raise RuntimeError("a hiccup")

    bench = bench_of(trouble)
    events = clicks(20)
    positions = bench.append(events)
    runner = FoldRunner(bench.context, MemoryPrepared(bench.context))
    name = bench.group("moody").name
    run_until(runner, lambda: bench.ledger.group(W, name).halted is not None)
    halted = bench.ledger.group(W, name)
    assert halted.watermark == positions[6]
    assert "moody@1" in str(halted.halted)
    assert f"position {positions[7]}" in str(halted.halted)
    run_until(runner, lambda: bench.ledger.group(W, name).halted is None)
    assert time.monotonic() - raised[-1] >= 0.4
    assert bench.table("moody", "seen") == counts(events)
    bench.assert_verified("moody", "trending")
    runner.stop()


def test_a_policy_that_always_raises_halts_only_its_group(bench_of: Callable[..., Bench]) -> None:
    def trouble(event: Folded) -> None:
        if event.id == "c7":
            raise ZeroDivisionError("broken for good")

    bench = bench_of(trouble)
    events = clicks(20)
    positions = bench.append(events)
    runner = FoldRunner(bench.context, MemoryPrepared(bench.context))
    moody_name, trending_name = bench.group("moody").name, bench.group("trending").name
    run_until(runner, lambda: bench.ledger.group(W, moody_name).halted is not None)
    for _ in range(3):
        positions += bench.append(clicks(5, start=len(positions)))
        head = positions[-1]
        run_until(runner, lambda: bench.ledger.watermarks(W)[trending_name][0] == head)  # noqa: B023 - run at once
    state = bench.ledger.group(W, moody_name)
    assert state.watermark == positions[6]  # all before it is committed, it is not
    assert state.halted is not None
    assert "moody@1" in state.halted
    assert f"position {positions[7]}" in state.halted
    assert "ZeroDivisionError" in state.halted
    assert bench.ledger.group(W, trending_name).halted is None
    assert bench.table("moody", "seen") == counts(events[:7])
    assert bench.ledger.dead_letters(W) == []
    bench.assert_verified("moody", "trending")
    runner.stop()


# -- checkpoints ------------------------------------------------------------------------------------------------------
def _with_checkpoints(settings: Settings, events: Sequence[Event]) -> dict[str, str]:
    """Fold events until each group has a checkpoint; group → its folder."""
    node = open_node(settings)
    try:
        append = _acceptor(node)
        node.context.pin(W)
        node.start_serving()
        for start in range(0, len(events), 50):
            append(events[start : start + 50])
            node.appended(W)
            wait_for("the folds", lambda: is_caught_up(node))
        wait_for("checkpoints", lambda: all(state.checkpoint for state in node.ledger.groups(W)))
    finally:
        node.close()
    node = open_node(settings)
    try:
        return {s.group: f"{settings.checkpoint_root}/{W}/{s.group}/{s.checkpoint}" for s in node.ledger.groups(W)}
    finally:
        node.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "all"])
def test_a_damaged_checkpoint_is_found_and_refolded_from_the_log(tmp_path: Path, damage: str) -> None:
    settings = load_settings(write_settings(tmp_path, fold={"checkpoint_min_bytes": 500, "min_free_bytes": 0}))
    events = Load("k", SEED).batch(300)
    folders = _with_checkpoints(settings, events)
    assert folders
    rng = random.Random(SEED)
    for folder in folders.values():
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.stat().st_size)
        file = Path(folder) / "manifest.json" if damage == "manifest" else rng.choice(files)
        data = bytearray(file.read_bytes())
        if damage == "all":
            for one in files:
                one.unlink()
        elif damage == "remove":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(data[: len(data) // 2])
        else:
            data[rng.randrange(len(data))] ^= 0x10
            file.write_bytes(data)
    more = Load("m", SEED).batch(50)
    node = open_node(settings)
    try:
        node.start_serving()
        _acceptor(node)(more)
        node.appended(W)
        wait_for("the folds", lambda: is_caught_up(node), 20)
        assert node.views is not None
        view = node.views.workspace(W)
        assert view.wait(node.ledger.head(W), None, 10), "the views do not serve what was refolded"
    finally:
        node.close()
    check_everything(settings, events + more)


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service folds on; the next checkpoint that fits is written, and nothing of the failed one lies about."""
    settings = load_settings(write_settings(tmp_path, fold={"checkpoint_min_bytes": 500, "min_free_bytes": 0}))
    failures: list[int] = []

    def full(stores: Any, root: Any, *, meta: Any) -> str:
        if len(failures) < 3:
            failures.append(1)
            broken = {"x": _Breaks()}
            return write_checkpoint(broken, root, meta=meta)  # type: ignore[arg-type]  # all that it needs is save()
        return write_checkpoint(stores, root, meta=meta)

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    events = Load("f", SEED).batch(600)
    _with_checkpoints(settings, events)
    assert len(failures) == 3
    assert not list(Path(settings.checkpoint_root).rglob("*.tmp"))
    node = open_node(settings)
    try:
        check_state(node, events)
    finally:
        node.close()


class _Breaks:
    """A store whose files do not fit on the disk."""

    def save(self, folder: Path) -> None:
        (folder / "half").write_bytes(b"half of a file")
        raise OSError(errno.ENOSPC, "No space left on device")
