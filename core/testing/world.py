"""Log, folds and views in one process, driven by hand: no threads, an injected clock, any policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamfold.core.clock import ManualClock
from streamfold.core.context import Context, Group
from streamfold.core.events import Acceptor
from streamfold.core.fold import FoldRunner, MemoryPrepared, Preparer, Verdict, verify_group
from streamfold.core.fold.eraser import Eraser
from streamfold.core.hooks import hookimpl
from streamfold.core.ledger.abc import Appended, Ledger
from streamfold.core.policy import Backend, Policy
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.core.testing.new_ledger import open_new
from streamfold.core.views import Views, WorkspaceView


def plugin(policies: Iterable[type[Policy]], backends: Iterable[Backend] = ()) -> Any:
    """Make a plugin of policies and backends, as a module would be."""
    listed, offered = list(policies), list(backends)

    class Module:
        @hookimpl
        def register_policies(self) -> list[type[Policy]]:
            return listed

        @hookimpl
        def register_backends(self) -> list[Backend]:
            return offered

    return Module()


class World:
    """A workspace under test.

    Parameters
    ----------
    folder : where ledger, checkpoints and scratch go.
    plugins : modules or objects with hook implementations (see :func:`plugin`).
    policies : the settings' ``policies`` table.
    backends : the settings' ``backends`` table.
    settings : further settings.
    ledger : an open ledger to share between worlds; default: SQLite in the folder.
    """

    def __init__(
        self,
        folder: Path,
        plugins: Iterable[Any],
        policies: Mapping[str, Mapping[str, Any]],
        *,
        backends: Mapping[str, Mapping[str, Any]] | None = None,
        ledger: Ledger | None = None,
        clock: ManualClock | None = None,
        fold: Mapping[str, Any] | None = None,
        owner: str = "world",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.workspace = "default"
        made = Settings(
            **(settings or {}),
            data=folder,
            policies={name: dict(table) for name, table in policies.items()},
            backends={kind: dict(table) for kind, table in (backends or {}).items()},
            fold=dict(fold or {}),  # type: ignore[arg-type]  # pydantic builds the section
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = clock or ManualClock()
        self.own_ledger = ledger is None
        self.ledger = ledger or open_new(made.ledger_url)
        self.registry = Registry(made, list(plugins))
        self.context = Context(
            settings=made,
            registry=self.registry,
            ledger=self.ledger,
            clock=self.clock,
            owner=owner,
            scratch=folder / f"scratch-{owner}",
        )
        self.acceptor = Acceptor(self.registry.event_types, self.clock)
        self.prepared = MemoryPrepared(self.context)
        self.preparer = Preparer(self.context, self.prepared)
        self.runner = FoldRunner(self.context, self.prepared)
        self.views = Views(self.context)
        self.context.pin(self.workspace)
        self._ids = 0

    def send(self, type_: str, data: Mapping[str, Any], **attributes: Any) -> Appended:
        """Append one event; ``id`` defaults to a running number."""
        return self.send_many([(type_, data)], **attributes)

    def send_many(self, events: Iterable[tuple[str, Mapping[str, Any]]], **attributes: Any) -> Appended:
        """Append several events in one transaction."""
        accepted = []
        for type_, data in events:
            self._ids += 1
            given = {"id": f"e{self._ids}", "source": "test", **attributes}
            accepted.append(self.acceptor.accept_data(type_, dict(data), **given))
        return self.ledger.append(self.workspace, accepted, recorded_us=self.clock.now_us())

    def fold(self) -> None:
        """Prepare and fold until nothing is left, without looking at halted groups twice."""
        for _ in range(1000):
            done = self.preparer.run(self.workspace, self.ledger.watermarks(self.workspace))
            left = self.runner.run(self.workspace)
            if not done and not left:
                return
        raise AssertionError("the fold did not come to rest in 1000 rounds")

    def erase(self) -> None:
        """Fold and erase until no erasure is pending."""
        eraser = Eraser(self.context, (self.runner,))
        for _ in range(100):
            self.fold()
            self.clock.advance(1)
            eraser.run(self.workspace)
            if not self.ledger.erasing_workspaces():
                return
        raise AssertionError("the erasures did not complete in 100 rounds")

    def forget_warm(self) -> None:
        """Drop everything warm, as a crash would: the next fold recovers from checkpoint + feed."""
        self.runner.stop()
        self.runner = FoldRunner(self.context, self.prepared)

    @property
    def view(self) -> WorkspaceView:
        """The workspace's view, brought up to date."""
        view = self.views.workspace(self.workspace)
        view.states_at = 0.0
        while view.follow():
            pass
        return view

    def store(self, policy: str, store: str) -> Any:
        """A live store of the view."""
        return self.view.member(policy)[store]

    def group(self, policy: str) -> Group:
        return self.context.group(self.workspace, policy)

    def verify(self) -> dict[str, Verdict]:
        """Fold every group afresh and compare."""
        return {g.name: verify_group(self.context, self.workspace, g) for g in self.context.groups(self.workspace)}

    def close(self) -> None:
        self.runner.stop()
        self.views.stop()
        self.registry.close()
        if self.own_ledger:
            self.ledger.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
