"""Is the class complete, and do ordinary events reach its stores? Without these two the other checks say nothing."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import msgspec

from streamfold.core.errors import StreamfoldError, nearest
from streamfold.core.events import EventTypes, builtin_types
from streamfold.core.policy import CandidateSource, Policy, Retriever
from streamfold.core.quality import QualityReport
from streamfold.core.stores import Array, Blobs, Graph, Table, Text, Vectors
from streamfold.core.testing.lab import Lab, difference, folding, needs, plugin_of, shown, told

_KINDS = (Table, Array, Vectors, Text, Graph, Blobs)
_ARGUMENTS = {
    "check_reads": ["read"],
    "prepare": ["event", "tools"],
    "prepare_batch": ["events", "tools"],
    "fold": ["event", "prepared", "stores"],
    "fold_batch": ["batch", "stores"],
    "gather": ["event", "stores"],
    "fold_gathered": ["gathered", "told", "stores"],
    "skipped": ["event", "stores"],
    "forget": ["subject", "events", "stores"],
    "serve": ["view"],
}


def check_spec(lab: Lab) -> None:
    """Name, version, handles, stores, configuration and methods are declared as the contract says."""
    kind, policy = lab.kind, lab.policy
    needs(
        isinstance(getattr(kind, "name", None), str) and kind.name.replace("_", "").replace("-", "").isalnum(),
        f"name is {getattr(kind, 'name', None)!r}: set the class attribute name = 'letters_and_digits'",
    )
    version = getattr(kind, "version", None)
    needs(
        type(version) is int and version >= 1, f"version is {version!r}: set the class attribute version = 1 (a number)"
    )
    needs(kind.fold is not Policy.fold, "fold is not defined: write def fold(self, event, prepared, stores)")
    for name, expected in _ARGUMENTS.items():
        signature = inspect.signature(getattr(policy, name))
        try:
            signature.bind(*expected)
        except TypeError:
            needs(False, f"{name}{signature} cannot be called: core calls it with ({', '.join(expected)}), by position")
    _check_handles(kind)
    _check_stores(policy)
    _check_config(lab)
    _check_registers(lab)


def _check_handles(kind: type[Policy]) -> None:
    handles = getattr(kind, "handles", None)
    needs(
        isinstance(handles, tuple) and handles,
        f"handles is {handles!r}: set a tuple of event types, as handles = ('interaction.observed',)",
    )
    module = plugin_of(kind)
    own = module.register_event_types() if module is not None and hasattr(module, "register_event_types") else []
    known = EventTypes([*builtin_types(), *own]).names()
    if module is not None:
        for name in kind.handles:
            needs(
                name in known,
                f"handles names the event type {name!r}, which is not declared{nearest(name, known)}: correct it, or "
                "declare it in register_event_types",
            )


def _check_stores(policy: Policy) -> None:
    stores = getattr(policy, "stores", None)
    needs(
        isinstance(stores, tuple) and stores,
        f"stores is {stores!r}: set a tuple of Table, Array, Vectors, Text, Graph or Blobs",
    )
    for one in policy.stores:
        needs(isinstance(one, _KINDS), f"stores holds {one!r}: declare Table, Array, Vectors, Text, Graph or Blobs")
    names = [one.name for one in policy.stores]
    needs(len(set(names)) == len(names), f"stores are named {names}: give each a name of its own")


def _check_config(lab: Lab) -> None:
    config = lab.kind.Config
    params = getattr(config, "__dataclass_params__", None)
    needs(
        dataclasses.is_dataclass(config) and params is not None and params.frozen,
        f"Config is {config.__name__}: make it a dataclass with @dataclass(frozen=True, slots=True, kw_only=True)",
    )
    again: Any = msgspec.convert(lab.config, config, strict=False)
    needs(
        again == lab.policy.config,
        f"the configuration {shown(lab.policy.config)} comes back from its stored form as {shown(again)}: use plain "
        "types (numbers, str, bool, tuple, dict) in Config",
    )
    other = lab.kind(again)
    needs(
        other.stores == lab.policy.stores,
        "two policies of one configuration declare different stores: stores may depend on the configuration alone",
    )


def _check_registers(lab: Lab) -> None:
    """Core can pin it and make it: known event types, declared reads and backends."""
    try:
        world = lab.base()
    except StreamfoldError as error:
        raise AssertionError(f"core refuses the policy: {error}") from error
    types = world.registry.event_types
    for name in lab.kind.handles:
        needs(
            name in types.names(),
            f"handles names the event type {name!r}, which is not declared{nearest(name, types.names())}: correct it, "
            "or offer it in register_event_types of the plugin's module",
        )
    server = lab.bench().server()
    needs(
        server is None or isinstance(server, (Retriever, CandidateSource)) or type(server).__module__ != "builtins",
        f"serve returns {shown(server)}: return None, a Retriever or a CandidateSource (as Candidates(function))",
    )
    measures = isinstance(server, QualityReport)
    needs(
        lab.kind.measures == measures,
        f"measures is {lab.kind.measures}, but its server is {'a' if measures else 'no'} QualityReport: set measures = "
        f"{measures}, as core decides by it whether a changed declaration has to pass the gate",
    )


def check_folds(lab: Lab) -> None:
    """Ordinary events are folded without an error and change the stores."""
    bench = lab.bench()
    errors: list[Any] = []
    for event, error in folding(lab.events(), bench):
        if error is not None:
            errors.append(f"{told(event)}: {error}")
    empty = lab.bench().contents()
    needs(
        difference(bench.contents(), empty),
        f"none of {len(lab.events())} generated events of {', '.join(lab.kind.handles)} changed a store"
        + (f" (the first was skipped: {errors[0]})" if errors else "")
        + ": the other checks would prove nothing. Give events that do: events=[(type, data), …]",
    )
