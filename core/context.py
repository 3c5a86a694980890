"""What every part of one process shares: settings, registry, ledger, clock, checkpoint root, and the instances."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from streamfold.core.clock import Clock, SystemClock
from streamfold.core.errors import ConfigError, nearest
from streamfold.core.ledger.abc import Instance, Ledger
from streamfold.core.policy import Policy, prepares
from streamfold.core.registry import Declared, Registry
from streamfold.core.settings import Settings


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
        return f"{self.instance.name}@{self.instance.version}"

    def store_key(self, store: str) -> str:
        return f"{self.key}/{store}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Instances connected by ``reads``, dependents first; one lease, one watermark, one slot."""

    name: str
    slot: str
    runtimes: tuple[Runtime, ...]
    handles: frozenset[str]

    @property
    def start_seq(self) -> int:
        return min(r.instance.start_seq for r in self.runtimes)


@dataclass(slots=True, kw_only=True)
class Context:
    """One process's share of everything."""

    settings: Settings
    registry: Registry
    ledger: Ledger
    clock: Clock = field(default_factory=SystemClock)
    owner: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    scratch: Path = Path(".streamfold/scratch")
    _groups: dict[str, tuple[tuple[Instance, ...], list[Group]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pin(self, workspace: str) -> list[Group]:
        """Make sure that each declared policy has its instance row; return the workspace's groups.

        Settings declare, instance rows decide: a declared policy without an instance becomes live from seq 0; a changed
        one becomes a shadow. Idempotent; safe in several processes.
        """
        self.ledger.ensure_workspace(workspace)
        have = self.ledger.instances(workspace)
        for members in _connected(self.registry):
            group = _group_name(members)
            if any(i.group == group for i in have):
                continue
            replaces = any(i.slot == "live" and i.name in {m.name for m in members} for i in have)
            for declared in members:
                row = _pinned(declared, group, "shadow" if replaces else "live", self.clock.now_us())
                self.ledger.add_instance(workspace, row)
        return self.groups(workspace, fresh=True)

    def groups(self, workspace: str, *, fresh: bool = False) -> list[Group]:
        """The workspace's groups that this process has code for (cached until the instance rows change)."""
        with self._lock:
            cached = self._groups.get(workspace)
        if cached is not None and not fresh:
            return cached[1]
        rows = tuple(self.ledger.instances(workspace))
        if cached is not None and cached[0] == rows:
            return cached[1]
        groups = self._build(rows)
        with self._lock:
            self._groups[workspace] = (rows, groups)
        return groups

    def group(self, workspace: str, name: str) -> Group:
        """A group by its name, or by any member's ``name`` or ``name@version`` (live first). Raises KeyError."""
        groups = sorted(self.groups(workspace), key=lambda g: g.slot != "live")
        for group in groups:
            if name == group.name or any(name in (r.instance.name, r.key) for r in group.runtimes):
                return group
        raise KeyError(name)

    def missing(self, workspace: str) -> list[Instance]:
        """Live or shadow instances whose code this process lacks."""
        known = {r.instance.instance_id for g in self.groups(workspace) for r in g.runtimes}
        return [i for i in self.ledger.instances(workspace) if i.slot != "retired" and i.instance_id not in known]

    def _build(self, rows: Sequence[Instance]) -> list[Group]:
        by_group: dict[str, list[Runtime]] = {}
        slots: dict[str, str] = {}
        for row in rows:
            if row.slot == "retired" or row.use not in self.registry.policies:
                continue
            kind = self.registry.policies[row.use]
            if kind.version != row.version:
                continue
            policy = self.registry.make_policy(row.use, row.config)
            runtime = Runtime(instance=row, policy=policy, handles=frozenset(policy.handles), prepares=prepares(policy))
            by_group.setdefault(row.group, []).append(runtime)
            slots[row.group] = row.slot
        return [
            Group(
                name=name,
                slot=slots[name],
                runtimes=_dependents_first(members),
                handles=frozenset().union(*(m.handles for m in members)),
            )
            for name, members in by_group.items()
        ]


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
    return tuple(by_name[name] for name in order.static_order())


def _connected(registry: Registry) -> list[list[Declared]]:
    """The declared policies, those connected by ``reads`` together."""
    declared = {d.name: d for d in registry.declared()}
    group_of = {name: name for name in declared}

    def root(name: str) -> str:
        while group_of[name] != name:
            name = group_of[name]
        return name

    for name, one in declared.items():
        for read in registry.policy_class(one.use).reads:
            if read not in declared:
                raise ConfigError(
                    f"[policies.{name}] reads {read!r}, which the settings do not declare{nearest(read, declared)}"
                )
            group_of[root(read)] = root(name)
    groups: dict[str, list[Declared]] = {}
    for name in sorted(declared):
        groups.setdefault(root(name), []).append(declared[name])
    return list(groups.values())


def _group_name(members: Sequence[Declared]) -> str:
    """``name@version-hash`` of one policy; of several, their names joined and a hash over all."""
    if len(members) == 1:
        return f"{members[0].name}@{members[0].version}-{members[0].config_hash[:8]}"
    every = ";".join(f"{m.name}@{m.version}-{m.config_hash}" for m in members)
    return f"{'+'.join(m.name for m in members)}-{hashlib.blake2b(every.encode(), digest_size=4).hexdigest()}"


def _pinned(declared: Declared, group: str, slot: Any, now_us: int) -> Instance:
    return Instance(
        instance_id=0,
        name=declared.name,
        use=declared.use,
        version=declared.version,
        config_hash=declared.config_hash,
        config=declared.config,
        code_hash=declared.code_hash,
        start_seq=0,
        slot=slot,
        group=group,
        created_us=now_us,
    )


def backend_identities(instance: Instance) -> Mapping[str, Mapping[str, Any]]:
    """The backends pinned with an instance: kind → ``use``, ``version`` and configuration."""
    backends: Mapping[str, Mapping[str, Any]] = json.loads(instance.config)["backends"]
    return backends
