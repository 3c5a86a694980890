"""I1, I8: a ledger of either database does what a few dictionaries say, whatever is asked of it in whatever order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from streamfold.core.errors import Fenced, IntakeConflict
from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import DeadLetter, IntakeMove, Lease, Ledger
from streamfold.core.testing.ledger_contract import make_event, make_instance

TTL_US = 10
IDS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([b"1", b"1", b"2"])), max_size=5)
WORKSPACES = st.sampled_from([0, 1])
GROUPS = st.sampled_from(["one", "two"])
OWNERS = st.sampled_from(["a", "b"])
_numbers = itertools.count()


@dataclass
class Group:
    """What the model knows of a group."""

    watermark: int = 0
    commit_no: int = 0
    epoch: int = 0
    owner: str | None = None
    until_us: int = 0
    paused: bool = False
    checkpoint: tuple[str, int, int] | None = None
    base: int = 0
    """The commit that the feed begins after."""
    feed: list[tuple[int, int, bytes]] = field(default_factory=list)
    skips: set[int] = field(default_factory=set)


@dataclass
class Workspace:
    """What the model knows of a workspace."""

    log: list[tuple[str, bytes]] = field(default_factory=list)
    offset: int | None = None
    groups: dict[str, Group] = field(default_factory=lambda: {"one": Group(), "two": Group()})

    def outcomes(self, events: list[tuple[str, bytes]]) -> list[str]:
        """What becomes of a batch; the log grows by what is new in it."""
        known = dict(self.log)
        found = []
        for id_, content in events:
            if id_ not in known:
                known[id_] = content
                self.log.append((id_, content))
                found.append("accepted")
            else:
                found.append("duplicate" if known[id_] == content else "reused")
        return found


class LedgerLife(RuleBasedStateMachine):
    """Two workspaces, two groups in each, two owners who remember leases that may be stale."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.names = [f"w{next(_numbers)}" for _ in range(2)]
        self.model = [Workspace(), Workspace()]
        self.now_us = 1000
        self.leases: list[tuple[int, Lease]] = []
        for name in self.names:
            ledger.ensure_workspace(name)
            for group in ("one", "two"):
                ledger.add_instance(name, make_instance(group))

    # -- the log ---------------------------------------------------------------------------------------------------
    @rule(at=WORKSPACES, ids=IDS, took=st.integers(1, 3), stale=st.sampled_from([0, 0, 0, 1]), moves=st.booleans())
    def append(self, at: int, ids: list[tuple[str, bytes]], took: int, stale: int, moves: bool) -> None:
        model, name = self.model[at], self.names[at]
        events = [make_event(id_, data=content) for id_, content in ids]
        if not moves:
            done = self.ledger.append(name, events, recorded_us=self.now_us)
            assert list(done.outcomes) == model.outcomes(ids)
            assert done.head == len(model.log)
            return
        now = model.offset
        expect = now if not stale else (7 if now is None else now + 1)
        move = IntakeMove(intake="k", expect=expect, next=(now or 0) + took, topic="t")
        if stale:
            with pytest.raises(IntakeConflict):
                self.ledger.append(name, events, recorded_us=self.now_us, moves=[move])
        else:
            done = self.ledger.append(name, events, recorded_us=self.now_us, moves=[move])
            assert list(done.outcomes) == model.outcomes(ids)
            model.offset = move.next

    # -- leases ----------------------------------------------------------------------------------------------------
    @rule(us=st.sampled_from([1, TTL_US // 2, TTL_US + 1]))
    def time_passes(self, us: int) -> None:
        self.now_us += us

    @rule(at=WORKSPACES, name=GROUPS, owner=OWNERS)
    def acquire(self, at: int, name: str, owner: str) -> None:
        group = self.model[at].groups[name]
        lease = self.ledger.acquire(self.names[at], name, owner, now_us=self.now_us, ttl_us=TTL_US)
        free = group.owner in (None, owner) or group.until_us <= self.now_us
        if group.paused or not free:
            assert lease is None
            return
        if group.owner != owner or group.until_us <= self.now_us:
            group.epoch += 1
        group.owner, group.until_us = owner, self.now_us + TTL_US
        assert lease == Lease(name, owner, group.epoch, group.watermark, group.commit_no)
        self.leases = [*self.leases[-5:], (at, lease)]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at, lease = self._lease(data)
        if lease is None:
            return
        group = self.model[at].groups[lease.group]
        self.ledger.release(self.names[at], lease)
        if (group.epoch, group.owner) == (lease.epoch, lease.owner):
            group.owner, group.until_us = None, 0

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        at, lease = self._lease(data)
        if lease is None:
            return
        group = self.model[at].groups[lease.group]
        standing = self.ledger.renew(self.names[at], [lease], now_us=self.now_us, ttl_us=TTL_US)
        if (group.epoch, group.owner) == (lease.epoch, lease.owner):
            assert standing == [lease]
            group.until_us = self.now_us + TTL_US
        else:
            assert standing == []

    @rule(at=WORKSPACES, name=GROUPS, paused=st.booleans())
    def pause(self, at: int, name: str, paused: bool) -> None:
        group = self.model[at].groups[name]
        self.ledger.set_paused(self.names[at], name, paused)
        group.paused = paused
        if paused:
            group.epoch, group.owner, group.until_us = group.epoch + 1, None, 0

    # -- commits ---------------------------------------------------------------------------------------------------
    @rule(data=st.data(), step=st.integers(0, 3), changes=st.sampled_from([None, b"x", b"yy"]), skips=st.booleans())
    def commit(self, data: st.DataObject, step: int, changes: bytes | None, skips: bool) -> None:
        """By any lease that anybody ever had: only the newest commits, and only once from where it stands."""
        at, lease = self._lease(data)
        if lease is None:
            return
        model = self.model[at]
        group = model.groups[lease.group]
        watermark = lease.watermark + step
        dead = []
        if skips and changes is not None and watermark > 0:
            dead = [DeadLetter(stage="fold", code="x", detail="", policy=lease.group, position=watermark, at_us=1)]

        def commit() -> Lease:
            return self.ledger.commit(
                self.names[at],
                lease,
                watermark=watermark,
                changes=changes,
                dead=dead,
                now_us=self.now_us,
                ttl_us=TTL_US,
            )

        if (group.epoch, group.watermark, group.commit_no) != (lease.epoch, lease.watermark, lease.commit_no):
            with pytest.raises(Fenced):
                commit()
            return
        after = commit()
        group.watermark = watermark
        group.until_us = self.now_us + TTL_US
        if changes is not None:
            group.commit_no += 1
            group.feed.append((group.commit_no, watermark, changes))
        group.skips |= {letter.position for letter in dead if letter.position is not None}
        assert (after.epoch, after.watermark, after.commit_no) == (group.epoch, group.watermark, group.commit_no)
        self.leases.append((at, after))

    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        at, lease = self._lease(data)
        if lease is None:
            return
        group = self.model[at].groups[lease.group]
        point = (f"c{lease.commit_no}", lease.commit_no, lease.watermark)

        def write() -> None:
            name, commit_no, watermark = point
            self.ledger.set_checkpoint(self.names[at], lease, name=name, commit_no=commit_no, watermark=watermark)

        if group.epoch != lease.epoch or not group.base <= lease.commit_no <= group.commit_no:
            with pytest.raises(Fenced):
                write()
            return
        write()
        group.checkpoint, group.base = point, lease.commit_no
        group.feed = [row for row in group.feed if row[0] > lease.commit_no]

    @rule(at=WORKSPACES, name=GROUPS)
    def reset(self, at: int, name: str) -> None:
        group = self.model[at].groups[name]
        self.ledger.reset_group(self.names[at], name, watermark=0)
        group.epoch, group.owner, group.until_us = group.epoch + 1, None, 0
        group.watermark, group.commit_no, group.checkpoint, group.feed = 0, group.commit_no + 1, None, []
        group.base = group.commit_no

    def _lease(self, data: st.DataObject) -> tuple[int, Lease | None]:
        return data.draw(st.sampled_from(self.leases)) if self.leases else (0, None)

    # -- what must hold after each step ----------------------------------------------------------------------------
    @invariant()
    def the_log_holds_each_event_once_in_order(self) -> None:
        for name, model in zip(self.names, self.model, strict=True):
            page = self.ledger.read(name, 0, 1000)
            assert page.head == len(model.log) == self.ledger.head(name)
            assert [row.seq for row in page.rows] == list(range(1, len(model.log) + 1))
            bodies = [make_event(id_, data=content).body for id_, content in model.log]
            assert [row.body for row in page.rows] == bodies
            assert [state.next_offset for state in self.ledger.intakes(name)] == (
                [] if model.offset is None else [model.offset]
            )

    @invariant()
    def groups_stand_where_their_commits_say(self) -> None:
        for name, model in zip(self.names, self.model, strict=True):
            marks = {group: (g.watermark, g.commit_no) for group, g in model.groups.items()}
            assert self.ledger.watermarks(name) == marks
            for state in self.ledger.groups(name):
                group = model.groups[state.group]
                assert state.checkpoint == (group.checkpoint[0] if group.checkpoint else None)
                assert state.feed_bytes == sum(len(changes) for _, _, changes in group.feed)
                assert self.ledger.skipped_seqs(name, state.group) == group.skips

    @invariant()
    def the_feed_has_every_commit_since_the_checkpoint(self) -> None:
        for name, model in zip(self.names, self.model, strict=True):
            cuts = {group: g.base for group, g in model.groups.items()}
            found: dict[str, list[tuple[int, int, bytes]]] = {"one": [], "two": []}
            for commit in self.ledger.feed(name, cuts):
                found[commit.group].append((commit.commit_no, commit.watermark, bytes(commit.changes)))
            assert found == {group: g.feed for group, g in model.groups.items()}


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/ledger.db" if sqlite else request.getfixturevalue("postgres_database")
    opened = open_ledger(url)
    yield opened
    opened.close()


def test_a_ledger_is_like_its_model(ledger: Ledger) -> None:
    limits: Any = settings(
        max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(lambda: LedgerLife(ledger), settings=limits)  # type: ignore[arg-type]  # any maker
