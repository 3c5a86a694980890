"""A group's stores in one process: opened, recovered from checkpoint + feed, drained into one commit's changes."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamfold.core.codec import pack, unpack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import CorruptCheckpoint, StreamfoldError
from streamfold.core.ledger.abc import Commit
from streamfold.core.policy import ReadOnly, Refusal
from streamfold.core.settings import VectorSettings
from streamfold.core.stores import open_store
from streamfold.core.stores.abc import Store
from streamfold.core.stores.checkpoint import read_checkpoint
from streamfold.core.stores.vectors import ExactVectors, VectorIndex

log = logging.getLogger("streamfold.stores")
Side = Literal["fold", "view", "both"]


class GroupStores:
    """The live stores of all members of a group, keyed ``name@version/store``."""

    def __init__(self, context: Context, group: Group, *, side: Side) -> None:
        self.folder = Path(context.scratch) / f"{side}-{uuid.uuid4().hex[:12]}"
        self.stores: dict[str, Store] = {}
        self.by_runtime: dict[str, _Named] = {}
        self._group = group
        self._side = side
        self._make_index = index_maker(context.settings.vectors)
        self._open()

    def _open(self) -> None:
        for runtime in self._group.runtimes:
            for declaration in runtime.policy.stores:
                place = self.folder / runtime.key / declaration.name
                place.mkdir(parents=True, exist_ok=True)
                self.stores[runtime.store_key(declaration.name)] = open_store(
                    declaration, folder=place, side=self._side, make_index=self._make_index
                )
        self.by_runtime = {r.key: _Named(r, self.stores) for r in self._group.runtimes}

    def empty(self) -> None:
        """Begin with new stores: those had from here before are closed."""
        self.close()
        self._open()

    def apply(self, commit: Commit) -> None:
        for key, changes in unpack(commit.changes, dict[str, bytes]).items():
            self.stores[key].apply(changes)

    def drain(self) -> bytes | None:
        """Packed changes of all stores since the last drain; None when there are none."""
        changes = {}
        for key, store in self.stores.items():
            data = store.drain()
            if data is not None:
                changes[key] = data
        return pack(changes) if changes else None

    def state_bytes(self) -> int:
        return sum(store.state_bytes() for store in self.stores.values())

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def index_maker(settings: VectorSettings) -> Callable[[int, bool], VectorIndex]:
    """What makes a view's vector index, as the settings say."""
    kind = settings.index
    if kind == "exact":
        return ExactVectors

    def make(dim: int, normalize: bool) -> VectorIndex:
        from streamfold.core.stores.vectors import LayeredVectors

        return LayeredVectors(
            dim,
            normalize,
            kind=kind,
            exact_rows=settings.exact_rows,
            recall=settings.recall,
            probe_every=settings.probe_every,
            gpu=settings.gpu,
        )

    return make


class _Named(dict[str, Any]):
    """One member's stores by their short names."""

    def __init__(self, runtime: Runtime, stores: dict[str, Store]) -> None:
        super().__init__({d.name: stores[runtime.store_key(d.name)] for d in runtime.policy.stores})


class FoldStores:
    """What ``fold`` gets as ``stores``: the member's stores, the fold's clock and generator, members it reads."""

    __slots__ = ("_instance_id", "_live", "_named", "_reads", "_refused", "_refusing", "now_us", "seq", "stack")

    def __init__(self, runtime: Runtime, named: dict[str, Any], reads: dict[str, ReadOnly], stack: str) -> None:
        self.stack = stack
        self._named = named
        self._reads = reads
        self._live = tuple(named.values())
        self._instance_id = runtime.instance.name + str(runtime.instance.version) + runtime.instance.config_hash
        self._refusing: list[Refusal] = []  # by the event in hand
        self._refused: list[Refusal] = []
        self.now_us = 0
        self.seq = 0

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def of(self, policy: str) -> ReadOnly:
        try:
            return self._reads[policy]
        except KeyError:
            raise StreamfoldError(f"policy {policy!r} is not in `reads`: add it there to read its stores") from None

    def refuse(self, past: Refusal) -> None:
        self._refusing.append(past)

    def refused(self) -> list[Refusal]:
        """Return the past events that were refused since this was last asked."""
        found, self._refused = self._refused, []
        return found

    def keep(self) -> None:
        """The event was folded: its writes stand."""
        for store in self._live:
            store.keep()
        if self._refusing:
            self._refused += self._refusing
            self._refusing = []

    def undo(self) -> None:
        """The event leaves no trace."""
        for store in self._live:
            store.undo()
        self._refusing = []

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seq, *self._instance_id.encode()])


class _Reader:
    """Stores and server of a member that another member reads: as before this event, since dependents fold first."""

    def __init__(self, stores: GroupStores, runtime: Runtime, reads: dict[str, ReadOnly], stack: str) -> None:
        self.stack = stack
        self._named = stores.by_runtime[runtime.key]
        self._reads = reads
        self.tools = None
        self.server = runtime.policy.serve(self)  # type: ignore[arg-type]  # the member's own stores are its view here

    def of(self, policy: str) -> ReadOnly:
        return self._reads[policy]

    def __getitem__(self, name: str) -> object:
        return self._named[name]


def readers(group: Group, stores: GroupStores) -> dict[str, dict[str, ReadOnly]]:
    """What each member's ``stores.of`` gives: by ``name@version`` and the name of the policy that it reads."""
    made: dict[str, ReadOnly] = {}
    found: dict[str, dict[str, ReadOnly]] = {}
    read = {name for runtime in group.runtimes for name in runtime.policy.reads}
    for runtime in reversed(group.runtimes):  # who is read comes first, and is made once for all who read it
        found[runtime.key] = {name: made[name] for name in runtime.policy.reads}
        if runtime.instance.name in read:
            made[runtime.instance.name] = _Reader(stores, runtime, found[runtime.key], group.stack)
    return found


def fold_stores(group: Group, stores: GroupStores) -> dict[str, FoldStores]:
    """What each member's ``fold`` gets, by its key."""
    reads = readers(group, stores)
    return {r.key: FoldStores(r, stores.by_runtime[r.key], reads[r.key], group.stack) for r in group.runtimes}


def recover(context: Context, workspace: str, group: Group, stores: GroupStores) -> tuple[int, int]:
    """Fill fresh stores from the newest checkpoint and the feed after it; returns (commit number, watermark).

    A corrupt checkpoint is named in the log and not used: when the feed does not reach back to the start, the caller
    has to refold (:class:`CorruptCheckpoint` is raised).
    """
    state = context.ledger.group(workspace, group.name)
    commit_no, watermark = state.checkpoint_commit, group.start_seq  # a group that was reset is empty at that commit
    if state.checkpoint:
        root = checkpoint_root(context, workspace, group.name)
        read_checkpoint(stores.stores, root, state.checkpoint, timeline_id=context.ledger.timeline_id)
        watermark = state.checkpoint_watermark
    return follow(context, workspace, group, stores, commit_no, watermark)


def follow(
    context: Context, workspace: str, group: Group, stores: GroupStores, commit_no: int, watermark: int
) -> tuple[int, int]:
    """Apply the feed after a commit to stores that stand there; returns (commit number, watermark)."""
    while commits := context.ledger.feed(workspace, {group.name: commit_no}):
        for commit in commits:
            if commit.commit_no != commit_no + 1:
                raise CorruptCheckpoint(
                    f"group {group.name}: the feed goes on at commit {commit.commit_no} after {commit_no}; a newer "
                    "checkpoint was written meanwhile (recover again) or feed rows are missing (rebuild the group)"
                )
            stores.apply(commit)
            commit_no, watermark = commit.commit_no, commit.watermark
    return commit_no, watermark


def checkpoint_root(context: Context, workspace: str, group: str) -> str:
    return f"{context.settings.checkpoint_root}/{workspace}/{group}"
