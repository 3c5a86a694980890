"""What every part of one process shares: settings, registry, ledger, clock, checkpoint root, and the instances."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from streamfold.core.archive import History, Reach
from streamfold.core.clock import Clock, SystemClock
from streamfold.core.errors import ConfigError, nearest
from streamfold.core.ledger.abc import Instance, Ledger, Slot
from streamfold.core.policy import Policy, prepares
from streamfold.core.registry import Declared, Registry
from streamfold.core.settings import Settings

log = logging.getLogger("streamfold.context")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """An instance with its policy object, ready to fold or serve."""

    instance: Instance
    policy: Policy
    handles: frozenset[str]
    prepares: bool

    @property
    def key(self) -> str:
        """``name@version``, as in dead letters and REST."""
        return self.instance.key

    @property
    def names(self) -> tuple[str, str]:
        """What addresses this very version: ``name@version``, or in full with the configuration's hash."""
        return self.instance.key, f"{self.instance.name}@{self.instance.label}"

    def store_key(self, store: str) -> str:
        return f"{self.key}/{store}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Instances connected by ``reads``, dependents first; one lease, one watermark, one slot."""

    name: str
    slot: str
    runtimes: tuple[Runtime, ...]
    handles: frozenset[str]
    rate: int = 0
    """Most events per second that it folds; 0: no limit."""
    in_split: bool = False
    """Whether it is the candidate of a live A/B, and answers a share of the users."""

    @property
    def answers(self) -> bool:
        """Whether users are answered from it, hence wait for it."""
        return self.slot == "live" or self.in_split

    @property
    def stack(self) -> str:
        """Its name without the generation: what folds together here, in which versions; a rebuild keeps it."""
        generation = self.runtimes[0].instance.generation
        return self.name.removesuffix(f".{generation}") if generation else self.name

    @property
    def names(self) -> frozenset[str]:
        """The names of its members."""
        return frozenset(runtime.instance.name for runtime in self.runtimes)

    @property
    def start_seq(self) -> int:
        return min(r.instance.start_seq for r in self.runtimes)

    @property
    def newest_suffices(self) -> bool:
        """Whether a compacted log is as good as a whole one."""
        return all(r.policy.newest_suffices for r in self.runtimes)


class _Read(NamedTuple):
    """What groups were made from: instance rows and the names of those in a split; and the groups."""

    rows: tuple[Instance, ...]
    splits: frozenset[str]
    groups: list[Group]


@dataclass(slots=True, kw_only=True)
class Context:
    """One process's share of everything."""

    settings: Settings
    registry: Registry
    ledger: Ledger
    clock: Clock = field(default_factory=SystemClock)
    owner: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    scratch: Path = Path(".streamfold/scratch")
    history: History = field(init=False)
    """The log, with what has left it for the archive."""
    _groups: dict[str, _Read] = field(default_factory=dict)
    _declared: frozenset[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while rows are read, so that what is cached never goes back to older ones."""

    def __post_init__(self) -> None:
        self.history = History(self.ledger, self.settings.archive_root)

    def pin(self, workspace: str) -> list[Group]:
        """Make sure that each declared policy has its instance row; return the workspace's groups.

        Settings declare, instance rows decide: a declared policy without an instance becomes live from seq 0; a changed
        one becomes a shadow, which takes over by itself unless ``on_change = "manual"``. Idempotent; safe in several
        processes.
        """
        self.ledger.ensure_workspace(workspace)
        have = self.ledger.instances(workspace)
        for members in _connected(self.registry):
            group = group_name(members)
            if slots := {i.slot for i in have if group in (i.group, i.group.removesuffix(f".{i.generation}"))}:
                if slots == {"retired"}:
                    log.warning(
                        "declared_but_retired workspace=%s group=%s: what is live stays; `streamfold policies add` "
                        "brings it back as a shadow",
                        workspace, group,
                    )  # fmt: skip
                continue
            replaces = any(i.slot == "live" and i.name in {m.name for m in members} for i in have)
            slot: Slot = "shadow" if replaces else "live"
            rows = [pinned(declared, group, slot, now_us=self.clock.now_us()) for declared in members]
            auto = replaces and self.settings.on_change != "manual"
            if (reach := self._reach_of(workspace, members)).rebuild == "impossible":
                log.warning(
                    "log_does_not_reach_back workspace=%s group=%s: it begins after position %d%s",
                    workspace, group, reach.rebuildable_from, "; promote it by hand" if auto else "",
                )  # fmt: skip
                rows, auto = [replace(row, start_seq=reach.rebuildable_from) for row in rows], False
            self.ledger.add_group(workspace, rows, auto=auto, unless_exists=True)
        return self.groups(workspace, fresh=True)

    def _reach_of(self, workspace: str, members: Sequence[Declared]) -> Reach:
        kinds = [self.registry.policy_class(member.use) for member in members]
        handles = frozenset(type_ for kind in kinds for type_ in kind.handles)
        newest = all(kind.newest_suffices for kind in kinds)
        return self.history.reach(workspace, handles, 0, newest_suffices=newest)

    def declares(self, group: Group) -> bool:
        """Whether the settings declare what a group is of, in any generation."""
        return group.stack in self.declared_stacks()

    def declared_stacks(self) -> frozenset[str]:
        """What the settings declare, by the names of its groups without a generation."""
        if self._declared is None:
            self._declared = frozenset(group_name(members) for members in _connected(self.registry))
        return self._declared

    def groups(self, workspace: str, *, fresh: bool = False) -> list[Group]:
        """The workspace's groups that this process has code for (cached until the instance rows change)."""
        cached = self._groups.get(workspace)
        if cached is not None and not fresh:
            return cached.groups
        with self._lock:
            cached = self._groups.get(workspace)
            rows, splits = tuple(self.ledger.instances(workspace)), frozenset(self.ledger.splits(workspace))
            if cached is not None and (cached.rows, cached.splits) == (rows, splits):
                return cached.groups
            groups = self._build(rows, splits, {} if cached is None else {g.name: g for g in cached.groups})
            self._groups[workspace] = _Read(rows, splits, groups)
        return groups

    def instances(self, workspace: str) -> tuple[Instance, ...]:
        """The instance rows that :meth:`groups` was last made from, retired ones too."""
        self.groups(workspace)
        return self._groups[workspace].rows

    def group(self, workspace: str, name: str) -> Group:
        """A group by its name, or by any member's ``name`` or ``name@version`` (live first). Raises KeyError."""
        groups = sorted(self.groups(workspace), key=lambda g: g.slot != "live")
        for group in groups:
            if name == group.name or any(name in (r.instance.name, *r.names) for r in group.runtimes):
                return group
        raise KeyError(name)

    def reach(self, workspace: str, group: Group) -> Reach:
        """What folding a group afresh would give, now that events may have left the log."""
        return self.history.reach(workspace, group.handles, group.start_seq, newest_suffices=group.newest_suffices)

    def opened(self) -> list[str]:
        """The workspaces whose groups this process has looked at."""
        return list(self._groups)

    def missing(self, workspace: str) -> list[Instance]:
        """Live or shadow instances whose code this process lacks."""
        known = {r.instance.instance_id for g in self.groups(workspace) for r in g.runtimes}
        return [i for i in self.ledger.instances(workspace) if i.slot != "retired" and i.instance_id not in known]

    def outdated(self, workspace: str) -> list[Group]:
        """Live groups of versions whose code is gone, made with the code of today: for serving their last state."""
        known = {group.name for group in self.groups(workspace)}
        by_group: dict[str, list[Instance]] = {}
        for row in self.instances(workspace):
            if row.slot == "live" and row.group not in known:
                by_group.setdefault(row.group, []).append(row)
        found = []
        for rows in by_group.values():
            try:
                found.append(self.make_group(rows))
            except ConfigError:
                continue  # it takes another configuration now, or its plugin is gone
        return found

    def make_group(self, rows: Sequence[Instance]) -> Group:
        """A group of instances that this process has code for."""
        return _group([self._runtime(row) for row in rows])

    def _runtime(self, row: Instance) -> Runtime:
        policy = self.registry.make_policy(row.use, row.config)
        return Runtime(instance=row, policy=policy, handles=frozenset(policy.handles), prepares=prepares(policy))

    def _build(self, rows: Sequence[Instance], splits: Container[str], before: Mapping[str, Group]) -> list[Group]:
        """Make the groups of all rows; a group whose slot alone has changed keeps its runtimes, hence its warm fold."""
        by_group: dict[str, list[Instance]] = {}
        for row in rows:
            known = self.registry.policies.get(row.use)
            if row.slot != "retired" and known is not None and known.version == row.version:
                by_group.setdefault(row.group, []).append(row)
        groups = []
        for name, members in by_group.items():
            old = before.get(name)
            if len(members) != sum(row.group == name for row in rows):
                continue  # a member's code is missing: its readers cannot fold without it
            if old is None or {r.instance.instance_id for r in old.runtimes} != {m.instance_id for m in members}:
                try:
                    old = self.make_group(members)
                except ConfigError as error:  # one broken version must not take the others down
                    log.error("group_left_out group=%s: %s", name, error)
                    continue
            now = replace(old, slot=members[0].slot, rate=members[0].rate, in_split=name in splits)
            groups.append(old if now == old else now)
        return groups


def _group(members: list[Runtime]) -> Group:
    first = members[0].instance
    return Group(
        name=first.group,
        slot=first.slot,
        runtimes=_dependents_first(members),
        handles=frozenset().union(*(m.handles for m in members)),
        rate=first.rate,
    )


def _dependents_first(members: list[Runtime]) -> tuple[Runtime, ...]:
    by_name = {m.instance.name: m for m in members}
    order: TopologicalSorter[str] = TopologicalSorter()
    for member in members:
        order.add(member.instance.name)
        for read in member.policy.reads:
            if read not in by_name:
                raise ConfigError(
                    f"policy {member.instance.name!r} reads {read!r}, which is not declared in the settings"
                )
            order.add(read, member.instance.name)
        member.policy.check_reads({read: by_name[read].policy for read in member.policy.reads})
    return tuple(by_name[name] for name in order.static_order())


def _connected(registry: Registry) -> list[list[Declared]]:
    """The declared policies, those connected by ``reads`` together."""
    declared = {d.name: d for d in registry.declared()}
    group_of = {name: name for name in declared}

    def root(name: str) -> str:
        while group_of[name] != name:
            name = group_of[name]
        return name

    made = {name: registry.make_policy(one.use, one.config) for name, one in declared.items()}
    for name, policy in made.items():
        for read in policy.reads:
            if read not in declared:
                raise ConfigError(
                    f"[policies.{name}] reads {read!r}, which the settings do not declare{nearest(read, declared)}"
                )
            group_of[root(read)] = root(name)
        policy.check_reads({read: made[read] for read in policy.reads})
    groups: dict[str, list[Declared]] = {}
    for name in sorted(declared):
        groups.setdefault(root(name), []).append(declared[name])
    return list(groups.values())


def group_name(members: Sequence[Declared]) -> str:
    """``name@version-hash`` of one policy; of several, their names joined and a hash over all."""
    if len(members) == 1:
        return f"{members[0].name}@{members[0].version}-{members[0].config_hash[:8]}"
    every = ";".join(f"{m.name}@{m.version}-{m.config_hash}" for m in members)
    return f"{'+'.join(m.name for m in members)}-{hashlib.blake2b(every.encode(), digest_size=4).hexdigest()}"


def pinned(declared: Declared, group: str, slot: Slot, *, now_us: int, start_seq: int = 0, rate: int = 0) -> Instance:
    """The row of a new instance."""
    return Instance(
        instance_id=0,
        name=declared.name,
        use=declared.use,
        version=declared.version,
        config_hash=declared.config_hash,
        config=declared.config,
        code_hash=declared.code_hash,
        start_seq=start_seq,
        slot=slot,
        group=group,
        created_us=now_us,
        rate=rate,
    )


def backend_identities(instance: Instance) -> Mapping[str, Mapping[str, Any]]:
    """The backends pinned with an instance: kind → ``use``, ``version`` and configuration."""
    backends: Mapping[str, Mapping[str, Any]] = json.loads(instance.config)["backends"]
    return backends
