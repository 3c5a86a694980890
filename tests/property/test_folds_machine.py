"""I1, I2, I7, I8, I9: two processes fold and serve two workspaces on either database, in any order of their steps.

After every step each view holds exactly what the oracle says for its position, and nothing of the other workspace; in
the end everything is folded once and a replay gives the same. The oracle is the simulator's: plain Python over the log.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sim_policies import POLICIES, Oracle, held

from streamfold.core.clock import ManualClock
from streamfold.core.context import Context
from streamfold.core.events import Acceptor
from streamfold.core.fold import FoldRunner, LedgerPrepared, Preparer, verify_group
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import Ledger
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.core.testing import plugin
from streamfold.core.views import WorkspaceView
from streamfold.plugins import builtin

PROCESSES = st.sampled_from([0, 1])
WORKSPACES = st.sampled_from([0, 1])
GROUPS = st.sampled_from([0, 1])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("interaction.observed"), st.sampled_from(["a", "b", "bad"])),
        st.tuples(st.just("item.deleted"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("document.upserted"), st.sampled_from(["d", "e"])),
        st.tuples(st.just("document.deleted"), st.sampled_from(["d", "e"])),
    ),
    min_size=1,
    max_size=5,
)
_numbers = itertools.count()


class Process:
    """What one process of the distributed shape has, without its threads."""

    def __init__(self, life: int, folder: Path, ledger: Ledger, configured: Settings, clock: ManualClock) -> None:
        self.context = Context(
            settings=configured,
            registry=Registry(configured, [builtin, plugin(POLICIES)]),
            ledger=ledger,
            clock=clock,
            owner=f"owner-{life}",
            scratch=folder / f"scratch-{life}",
        )
        prepared = LedgerPrepared(self.context)
        self.preparer = Preparer(self.context, prepared)
        self.runner = FoldRunner(self.context, prepared)
        self.views: dict[str, WorkspaceView] = {}

    def view(self, workspace: str) -> WorkspaceView:
        if workspace not in self.views:
            self.views[workspace] = WorkspaceView(self.context, workspace, lambda name, seconds: None)
        return self.views[workspace]

    def close(self) -> None:
        for view in self.views.values():
            view.close()


class Folds(RuleBasedStateMachine):
    """Two processes on one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.clock = ManualClock()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.workspaces = [f"f{next(_numbers)}" for _ in range(2)]
        self.settings = Settings(
            data=self.folder,
            ledger={"url": "postgresql+psycopg://given"},  # type: ignore[arg-type]  # pydantic builds the section
            policies={kind.name: {} for kind in POLICIES},
            fold={"batch_events": 2, "max_skips": 10_000, "prepare_batch": 3},  # type: ignore[arg-type]
        )
        self.lives = itertools.count()
        self.processes = [self._start(), self._start()]
        context = self.processes[0].context
        for workspace in self.workspaces:
            context.pin(workspace)
        decode = context.registry.event_types.decode
        self.oracles = [Oracle(ledger, workspace, decode) for workspace in self.workspaces]
        self.acceptor = Acceptor(context.registry.event_types, self.clock)
        self.sent: list[list[Any]] = [[], []]
        self.positions: dict[Any, int] = {}
        self.gone_back: set[Any] = set()
        """Views whose group was reset: each may go back once."""

    def _start(self) -> Process:
        return Process(next(self.lives), self.folder, self.ledger, self.settings, self.clock)

    # -- what happens ----------------------------------------------------------------------------------------------
    @rule(at=WORKSPACES, events=EVENTS)
    def append(self, at: int, events: list[tuple[str, str]]) -> None:
        self.clock.advance(0.1)
        given = [self._accepted(at, kind, name) for kind, name in events]
        self.sent[at] += given
        done = self.ledger.append(self.workspaces[at], given, recorded_us=self.clock.now_us())
        assert set(done.outcomes) == {"accepted"}

    def _accepted(self, at: int, kind: str, name: str) -> Any:
        subject, own = kind.split(".")[0], f"{name}" if name == "bad" else f"{name}-{at}"
        data: dict[str, Any] = {
            "interaction.observed": {"user_id": "u", "item_id": own, "action": "click"},
            "item.deleted": {"item_id": own},
            "document.upserted": {"document_id": own, "title": "T", "text": f"text of {own} {self.clock.now_us()}"},
            "document.deleted": {"document_id": own},
        }[kind]
        return self.acceptor.accept_data(kind, data, id=f"{subject}{next(_numbers)}", source="test")

    @rule(at=WORKSPACES, data=st.data())
    def redeliver(self, at: int, data: st.DataObject) -> None:
        if self.sent[at]:
            again = data.draw(st.sampled_from(self.sent[at]))
            done = self.ledger.append(self.workspaces[at], [again], recorded_us=self.clock.now_us())
            assert done.outcomes == ["duplicate"]

    @rule(who=PROCESSES, at=WORKSPACES)
    def prepare(self, who: int, at: int) -> None:
        self.processes[who].preparer.run(self.workspaces[at], self.ledger.watermarks(self.workspaces[at]))

    @rule(who=PROCESSES, at=WORKSPACES, rounds=st.sampled_from([1, 5]))
    def fold(self, who: int, at: int, rounds: int) -> None:
        self.processes[who].runner.run(self.workspaces[at], rounds=rounds)

    @rule()
    def leases_expire(self) -> None:
        """Who had one does not know it: its next commit is fenced, or nobody was faster."""
        self.clock.advance(self.settings.fold.lease_s + 1)

    @rule(who=PROCESSES, at=WORKSPACES)
    def follow(self, who: int, at: int) -> None:
        self.processes[who].view(self.workspaces[at]).follow()

    @rule(who=PROCESSES)
    def crash(self, who: int) -> None:
        self.processes[who].close()
        self.processes[who] = self._start()
        self.positions = {key: position for key, position in self.positions.items() if key[0] != who}

    @rule(who=PROCESSES, at=WORKSPACES, number=GROUPS)
    def checkpoint(self, who: int, at: int, number: int) -> None:
        process, workspace = self.processes[who], self.workspaces[at]
        group = process.context.groups(workspace)[number]
        fold = process.runner._folds.get((workspace, group.name))
        if fold is not None and fold.lease is not None:
            checkpoint_group(process.context, workspace, group, fold.lease)

    @rule(at=WORKSPACES, number=GROUPS)
    def refold(self, at: int, number: int) -> None:
        group = self.processes[0].context.groups(self.workspaces[at])[number]
        self.ledger.reset_group(self.workspaces[at], group.name, watermark=0)
        self.gone_back |= {(who, at, group.name) for who in range(len(self.processes))}

    # -- what must hold after each step ----------------------------------------------------------------------------
    @invariant()
    def each_view_is_what_the_oracle_says_for_its_position(self) -> None:
        for who, process in enumerate(self.processes):
            for at, workspace in enumerate(self.workspaces):
                view = process.views.get(workspace)
                for group in [] if view is None else view.live():
                    found = held(group.group, group.stores.by_runtime)
                    expected = self.oracles[at].at(group.watermark)
                    assert found == {store: expected[store] for store in found}
                    key = (who, at, group.group.name)
                    if group.watermark < self.positions.get(key, 0):
                        assert key in self.gone_back, "a view went back"
                        self.gone_back.remove(key)  # it has seen that the group was reset
                    self.positions[key] = group.watermark

    def teardown(self) -> None:
        try:
            self.leases_expire()
            for at, workspace in enumerate(self.workspaces):
                self._finish(at, workspace)
        finally:
            for process in self.processes:
                process.close()
            self.temporary.cleanup()

    def _finish(self, at: int, workspace: str) -> None:
        last = self.processes[0]
        for _ in range(100):
            done = last.preparer.run(workspace, self.ledger.watermarks(workspace))
            self.clock.advance(self.settings.fold.lease_s + 1)
            for fold in last.runner._folds.values():
                fold._renewed = float("-inf")  # it measures by the real clock: have it see that its lease has run out
            if not last.runner.run(workspace) and not done:
                break
        self.oracles[at].read()
        end = self.oracles[at].at(len(self.oracles[at].ids))
        for process in self.processes:
            view = process.view(workspace)
            view.states_at = 0.0
            while view.follow():
                pass
            for served in view.live():
                found = held(served.group, served.stores.by_runtime)
                assert found == {store: end[store] for store in found}
        skipped = [letter.position for letter in self.ledger.dead_letters(workspace, limit=1000)]
        assert sorted(position for position in skipped if position) == self.oracles[at].poison
        for group in last.context.groups(workspace):
            verdict = verify_group(last.context, workspace, group)
            assert verdict.equal, verdict.differences


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/ledger.db" if sqlite else request.getfixturevalue("postgres_database")
    ledger = open_ledger(url)
    yield lambda: Folds(ledger)
    ledger.close()


def test_two_processes_fold_and_serve_two_workspaces(make: Callable[[], Folds]) -> None:
    limits: Any = settings(
        max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(make, settings=limits)  # type: ignore[arg-type]  # any maker
