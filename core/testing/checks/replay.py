"""Recovery, redelivery, batches, checkpoints and failures leave the stores as one undisturbed fold does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streamfold.core.errors import EventError, LedgerUnavailable
from streamfold.core.events import Event
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.policy import Policy
from streamfold.core.testing.answers import answers
from streamfold.core.testing.lab import Bench, CheckFailed, Lab, difference, needs, rows, send, shown, told
from streamfold.core.testing.world import World

Contents = dict[str, dict[Any, Any]]
_STATE = (
    "keep everything in stores (nothing on self, in a class or a module), and put a changed value back: what is only "
    "changed in place is not recorded"
)


def check_resume(lab: Lab) -> None:
    """A process that dies after any event and is recovered holds what an undisturbed fold holds there."""
    given = lab.given()
    world = lab.world()
    bench = lab.bench()
    for seq, (event, one) in enumerate(zip(lab.logged(given), given, strict=True), 1):
        bench.fold(event)
        bench.commit()
        send(world, [one], first=seq)
        _fold(lab, world)
        found = difference(_contents(lab, world), bench.contents())
        needs(
            not found,
            f"recovered after each event, the stores differ from those of an undisturbed fold after event {seq}, "
            f"{told(event)} ({found}): {_STATE}",
        )
        world.runner.stop()
        world = lab.world(beside=world)


def check_redelivery(lab: Lab) -> None:
    """An event that is sent again, or folded again because its commit was lost, counts once."""
    given = lab.given()
    world = lab.world()
    with _losing_each_commit_once(world):
        for seq, one in enumerate(given, 1):
            send(world, [one], first=seq)
            _fold(lab, world)
    expected = lab.bench().run(lab.events()).contents()
    found = difference(_contents(lab, world), expected)
    needs(
        not found,
        f"when a commit is lost and its event is folded again, the stores differ ({found}): {_STATE}. Core counts "
        "each event once; do not remember ids of your own",
    )
    send(world, given)
    _fold(lab, world)
    found = difference(_contents(lab, world), expected)
    needs(not found, f"events that are sent again change the stores ({found}): {_STATE}")


def check_batch(lab: Lab) -> None:
    """``fold_batch`` and ``fold_gathered`` equal the loop over ``fold``, whatever the size of the batch."""
    taken = [name for name in ("fold_batch", "fold_gathered") if getattr(lab.kind, name) is not getattr(Policy, name)]
    if not taken:
        return
    given = lab.given(4 * 24)
    loop = lab.world(_looping(lab.kind))
    send(loop, given)
    _fold(lab, loop)
    expected = _contents(lab, loop)
    for size in (1, 3, 1000):
        world = lab.world(batch_events=size)
        send(world, given)
        _fold(lab, world)
        found = difference(_contents(lab, world), expected)
        needs(
            not found,
            f"{' or '.join(taken)} with {size} events differs from the loop over fold ({found}): it must do what fold "
            "does for each event, in order and to the bit; where it cannot, inherit the loop "
            "(super().fold_batch(batch, stores)), or let gather return None",
        )


def check_compacted(lab: Lab) -> None:
    """With ``newest_suffices``, a log without what a later event of the subject replaces gives the same stores."""
    if not lab.kind.newest_suffices:
        return
    events = lab.logged(lab.given(4 * 24))
    left = _compacted(lab, events)
    expected = lab.bench().run(events).contents()
    found = difference(lab.bench().run(left).contents(), expected)
    needs(
        not found,
        f"without {len(events) - len(left)} of {len(events)} events, which later ones of their subjects replace, the "
        f"stores differ ({found}): an upsert or deletion must leave nothing of what was said of the subject before; if "
        "that is not what the policy is for, leave newest_suffices = False",
    )


def _compacted(lab: Lab, events: Sequence[Event]) -> list[Event]:
    """Leave out what retention may: see ``Keeper``."""
    types = lab.base().registry.event_types
    deleting = frozenset(types.deleting())
    replacing = types.stating("whole") | deleting
    stating = replacing | types.stating("part")
    newest = {event.subject: event.seq for event in events if event.type in replacing}
    return [
        event
        for event in events
        if event.type not in stating or (event.seq >= newest.get(event.subject, 0) and event.type not in deleting)
    ]


def check_checkpoint(lab: Lab) -> None:
    """Stores and answers after a checkpoint and a restart are those of a view that followed every commit."""
    given = lab.given()
    half = len(given) // 2
    world = lab.world()
    world.view.member(lab.kind.name)
    send(world, given[:half])
    _fold(lab, world)
    _contents(lab, world)  # the view follows up to here, and need not be loaded afresh after the checkpoint
    _checkpoint(lab, world)
    send(world, given[half:], first=half + 1)
    _fold(lab, world)
    followed, said = _contents(lab, world), answers(world.view.member(lab.kind.name).server)
    _checkpoint(lab, world)
    world.runner.stop()
    again = lab.world(beside=world)
    found = difference(_contents(lab, again), followed)
    needs(not found, f"after a checkpoint and a restart the stores differ ({found}): {_STATE}")
    others = answers(again.view.member(lab.kind.name).server)
    for one, other in zip(said, others, strict=True):
        needs(
            one == other,
            f"after a checkpoint and a restart the same stores answer {one[0]} differently: {shown(one[1])} before, "
            f"{shown(other[1])} after. serve() is called once per view: read the view when answering, and copy nothing "
            "from it before",
        )


def check_half_way(lab: Lab) -> None:
    """A fold that fails between two writes leaves no trace in the stores, nor in what follows."""
    bench, expected = lab.bench(side="both"), lab.bench(side="both")
    for event in lab.events():
        what = f"{told(event)}"
        before = copy.deepcopy(bench.contents())  # a value changed in place must not change here too
        for nth in range(1, _writes(expected, event) + 1):
            try:
                _fold_failing_at(bench, event, nth)
            except Exception as error:
                raise CheckFailed(
                    f"stopped at write {nth} of {what} by an EventError, the policy raised {error!r} instead: let "
                    "EventError pass, and tidy up nothing (core undoes the writes)"
                ) from error
            found = difference(bench.contents(), before)
            needs(
                not found,
                f"a fold of {what} that failed at its write {nth} left a trace ({found}): values in a Table are not "
                "copied, so never change one in place; put a changed copy (msgspec.structs.replace, {**old, …}, "
                "[*old, …])",
            )
        bench.fold(event)
        found = difference(bench.contents(), expected.contents())
        needs(not found, f"after failed attempts {what} is folded differently ({found}): {_STATE}")


# -- doing it ---------------------------------------------------------------------------------------------------------
def _fold(lab: Lab, world: World) -> None:
    for _ in range(3):  # a lost commit comes up to here, as it does in a worker
        try:
            world.fold()
        except LedgerUnavailable:
            continue
        break
    halted = world.ledger.group(world.workspace, world.group(lab.kind.name).name).halted
    needs(halted is None, f"the policy was halted: {halted}")


def _contents(lab: Lab, world: World) -> Contents:
    member = world.view.member(lab.kind.name)
    return {one.name: rows(member[one.name]) for one in member.runtime.policy.stores}


def _checkpoint(lab: Lab, world: World) -> None:
    group = world.group(lab.kind.name)
    fold = world.runner._folds.get((world.workspace, group.name))
    if fold is not None and fold.lease is not None:
        checkpoint_group(world.context, world.workspace, group, fold.lease)


@contextmanager
def _losing_each_commit_once(world: World) -> Iterator[None]:
    """Let the ledger be unreachable at the first try of each commit, after the fold has run."""
    commit, lost = world.ledger.commit, set[int]()

    def losing(workspace: str, lease: Any, *, watermark: int, **more: Any) -> Any:
        if watermark not in lost:
            lost.add(watermark)
            raise LedgerUnavailable("the kit lost this commit")
        return commit(workspace, lease, watermark=watermark, **more)

    vars(world.ledger)["commit"] = losing
    try:
        yield
    finally:
        del vars(world.ledger)["commit"]


def _looping(kind: type[Policy]) -> type[Policy]:
    loops = {"fold_batch": Policy.fold_batch, "gather": Policy.gather, "__module__": __name__}
    looping: type[Policy] = type(kind.__name__, (kind,), loops)
    return looping


class _Watched:
    """A store that calls ``on_write`` before each write."""

    WRITES = frozenset(("put", "delete", "upsert"))

    def __init__(self, store: Any, on_write: Callable[[], None]) -> None:
        self._store = store
        self._on_write = on_write

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.WRITES:
            return method

        def write(*arguments: Any, **more: Any) -> Any:
            self._on_write()
            return method(*arguments, **more)

        return write

    def __contains__(self, key: Any) -> bool:
        return key in self._store

    def __len__(self) -> int:
        return len(self._store)


def _writes(bench: Bench, event: Event) -> int:
    """Fold an event and count its writes; 0 when it is skipped."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1

    bench.wrap = lambda name, store: _Watched(store, on_write)
    skipped = bench.fold(event)
    return 0 if skipped else count


def _fold_failing_at(bench: Bench, event: Event, nth: int) -> None:
    """Start to fold an event in the tested policy, fail at its n-th write, and undo as core does."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1
        if count >= nth:
            raise EventError("the kit stopped this fold half-way", code="half-way")

    runtime = bench.runtime
    [value] = bench.prepare([event])
    bench.wrap = lambda name, store: _Watched(store, on_write)
    stores = bench.stores()
    bench.wrap = lambda name, store: store
    stores.seq, stores.now_us = event.seq, event.recorded_us
    live = tuple(bench.live.by_runtime[runtime.key].values())
    for store in live:
        store.begin()
    try:
        runtime.policy.fold(event, value, stores)
    except EventError:
        pass
    finally:
        for store in live:
            store.undo()
