"""What is on offer in this process (policies, backends, event types, decoders) and what the settings declare.

Built-ins are ordinary plugins, registered first; third parties come from the entry-point group ``streamfold`` and
are enabled by name in the settings, never merely by being installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import msgspec
import pluggy

from streamfold.core.errors import ConfigError, PluginError, nearest
from streamfold.core.events import DECODERS, EventTypes, builtin_types
from streamfold.core.hooks import PROJECT, Hooks
from streamfold.core.policy import Backend, Policy
from streamfold.core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """An instance that the settings ask for, with everything that identifies it."""

    name: str
    use: str
    version: int
    config: str
    """Canonical JSON of ``{"config": …, "backends": {kind: identity}}``."""
    config_hash: str
    code_hash: str


class Registry:
    """Everything registered, by name.

    Parameters
    ----------
    settings : which plugins are enabled, which policies are declared.
    builtins : plugin modules of our own.
    """

    def __init__(self, settings: Settings, builtins: Iterable[Any] = ()) -> None:
        self.settings = settings
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Hooks)
        if os.environ.get("STREAMFOLD_TRACE_HOOKS"):
            self.manager.trace.root.setwriter(lambda text: sys.stderr.write(text))
            self.manager.enable_tracing()
        for module in builtins:
            self.manager.register(module)
        self._load_plugins(settings.plugins)
        self.manager.check_pending()
        self.policies: dict[str, type[Policy]] = self._by_name(
            "policy", ((p.name, p) for ps in self.hook.register_policies() for p in ps)
        )
        self.backends: dict[tuple[str, str], Backend] = self._by_name(
            "backend", (((b.kind, b.name), b) for bs in self.hook.register_backends() for b in bs)
        )
        self.decoders: dict[str, Callable[..., Any]] = self._by_name(
            "decoder", [*DECODERS.items(), *(item for ds in self.hook.register_decoders() for item in ds.items())]
        )
        extra = [t for ts in self.hook.register_event_types() for t in ts]
        self.event_types = EventTypes([*builtin_types(actions=settings.limits.actions), *extra])
        self._made: dict[str, Any] = {}
        self.hook.configured.call_historic(kwargs={"settings": settings})

    @property
    def hook(self) -> Any:
        return self.manager.hook

    def _load_plugins(self, names: Iterable[str]) -> None:
        available = {point.name: point for point in entry_points(group=PROJECT)}
        for name in names:
            point = available.get(name)
            if point is None:
                raise PluginError(
                    f"plugin {name!r} is enabled in the settings but no installed distribution offers it in the "
                    f"entry-point group 'streamfold'{nearest(name, available)}"
                )
            dist = point.dist.name if point.dist else "an unknown distribution"
            try:
                self.manager.register(point.load(), name=name)
            except Exception as error:
                raise PluginError(f"plugin {name!r} of {dist} cannot be imported: {error!r}") from error

    @staticmethod
    def _by_name(what: str, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for name, value in pairs:
            if name in found:
                raise PluginError(f"two plugins register the {what} {name!r}: rename one, or enable only one of them")
            found[name] = value
        return found

    # -- policies -----------------------------------------------------------------------------------------------------
    def policy_class(self, use: str) -> type[Policy]:
        try:
            return self.policies[use]
        except KeyError:
            raise ConfigError(f"no policy named {use!r} is registered{nearest(use, self.policies)}") from None

    def make_config(self, name: str, kind: type[Policy], values: Mapping[str, Any]) -> Any:
        """Build a policy's frozen config from a settings table; unknown keys and wrong values are ``ConfigError`` s."""
        fields = {f.name for f in dataclasses.fields(kind.Config)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"[policies.{name}] unknown key {key!r}{nearest(key, fields)}")
        try:
            return msgspec.convert(dict(values), kind.Config, strict=False)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            what, found, where = str(error).partition(" - at `$.")
            raise ConfigError(f"[policies.{name}] {f'{where[:-1]}: {what}' if found else what}") from error

    def declared(self) -> list[Declared]:
        """The instances that the settings declare, in order of name."""
        found = []
        for name, table in sorted(self.settings.policies.items()):
            values = dict(table)
            use = values.pop("use", name)
            found.append(self.declare(name, use, values))
        return found

    def declare(self, name: str, use: str, values: Mapping[str, Any]) -> Declared:
        """An instance of a policy with a configuration (the rest of a settings table), and today's backends."""
        kind = self.policy_class(use)
        config = msgspec.to_builtins(self.make_config(name, kind, values))
        kinds = {*kind.backends, *(k for k in kind.may_use if k in self.settings.backends)}
        backends = {k: self.backend_identity(k) for k in sorted(kinds)}
        canonical = json.dumps({"config": config, "backends": backends}, sort_keys=True, separators=(",", ":"))
        return Declared(
            name=name,
            use=use,
            version=kind.version,
            config=canonical,
            config_hash=hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest(),
            code_hash=_code_hash(kind),  # type: ignore[arg-type]  # mypy looks at the hash of instances
        )

    def backend_identity(self, kind: str) -> dict[str, Any]:
        """What identifies the backend that the settings name: ``use``, version, what of its configuration decides."""
        values = dict(self.settings.backends.get(kind, {}))
        made = self.make_backend(kind, values)
        operational = self.backends[kind, str(values.get("use"))].operational
        kept = {key: value for key, value in values.items() if key not in operational}
        return {**kept, "use": values.get("use"), "version": made.version}

    def make_backend(self, kind: str, values: Mapping[str, Any]) -> Any:
        """Build (once per process) the backend of a kind; ``values``: ``use`` and its configuration."""
        config = {k: v for k, v in values.items() if k not in ("use", "version")}
        use = values.get("use")
        backend = self.backends.get((kind, str(use)))
        today = self.settings.backends.get(kind, {})
        if backend is not None and today.get("use") == use:
            config |= {k: v for k, v in today.items() if k in backend.operational}
        key = json.dumps([kind, use, config], sort_keys=True)
        if key not in self._made:
            if backend is None:
                names = [name for k, name in self.backends if k == kind]
                raise ConfigError(f"[backends.{kind}] no {kind} named {use!r} is registered{nearest(str(use), names)}")
            self._made[key] = backend.make(config)
        return self._made[key]

    def close(self) -> None:
        """Close the backends that hold something open (they have a ``close``)."""
        for made in self._made.values():
            if close := getattr(made, "close", None):
                close()

    def make_policy(self, use: str, config: str) -> Policy:
        """Build a policy from its pinned configuration."""
        kind = self.policy_class(use)
        return kind(self.make_config(use, kind, json.loads(config)["config"]))


@lru_cache(maxsize=256)
def _code_hash(kind: Any) -> str:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
