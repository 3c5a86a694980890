"""Find the plugin that a command names: a folder or file that need not be installed, an entry point, a built-in."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from streamfold.core import Policy
from streamfold.core.errors import nearest
from streamfold.pipelines.cli.state import USAGE, CliError

GROUP = "streamfold"
QUICK_BACKENDS = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin's module, loaded; ``load`` loads it again after a change."""

    name: str
    module_name: str
    file: Path | None = None
    """The file to load it from, where it is no module of the path."""
    only: str = ""
    """The one policy that was asked for."""

    def load(self) -> ModuleType:
        """Import the module, afresh if its files were imported before."""
        for name in [name for name, module in sys.modules.items() if self._is_mine(name, module)]:
            del sys.modules[name]
        importlib.invalidate_caches()
        try:
            if self.file is None:
                return importlib.import_module(self.module_name)
            return _from_file(self.module_name, self.file)
        except Exception as error:
            raise CliError(f"plugin {self.name!r} cannot be imported: {type(error).__name__}: {error}") from error

    def _is_mine(self, name: str, module: Any) -> bool:
        return not name.startswith("streamfold.") and (
            name == self.module_name or name.startswith(f"{self.module_name}.")
        )

    def files(self) -> list[Path]:
        """The source files whose change means that it should be loaded again."""
        if self.file is not None:
            return [self.file]
        spec = importlib.util.find_spec(self.module_name)  # also of code that cannot be imported just now
        if spec is None or spec.origin is None:
            return []
        place = Path(spec.origin)
        return sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]


def find_plugin(target: str) -> Plugin:
    """Return the plugin at a path, of an installed distribution, or the one with a built-in policy of this name."""
    path = Path(target)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".py":
        if not path.exists():
            raise CliError(f"{target}: no such file", USAGE)
        return Plugin(name=path.stem, module_name=path.stem, file=path.resolve())
    points = {point.name: point for point in entry_points(group=GROUP)}
    if target in points:
        return Plugin(name=target, module_name=points[target].module)
    from streamfold.plugins import builtin

    names = [policy.name for policy in builtin.register_policies()]
    if target in names:
        return Plugin(name=target, module_name=builtin.__name__, only=target)
    raise CliError(
        f"{target!r} is neither a folder, nor a .py file, nor an installed plugin, nor a built-in policy"
        f"{nearest(target, [*points, *names])}",
        USAGE,
    )


def policies_of(plugin: Plugin, module: ModuleType, name: str = "") -> list[type[Policy]]:
    """Return the policies that the plugin registers, or the one named."""
    register = getattr(module, "register_policies", None)
    if register is None or not hasattr(register, "streamfold_impl"):
        raise CliError(
            f"{module.__name__} registers no policy: write @hookimpl def register_policies(): return [YourPolicy]"
        )
    offered: list[type[Policy]] = list(register())
    wanted = name or plugin.only
    chosen = [policy for policy in offered if not wanted or policy.name == wanted]
    if not chosen:
        raise CliError(f"no policy {wanted!r} in {plugin.name!r}{nearest(wanted, [p.name for p in offered])}", USAGE)
    return chosen


def is_builtin(plugin: Plugin) -> bool:
    return plugin.module_name.startswith("streamfold.")


def _of_folder(folder: Path) -> Plugin:
    file = folder / "pyproject.toml"
    if not file.exists():
        raise CliError(
            f"{folder} has no pyproject.toml: `streamfold new-plugin NAME` writes a plugin to start from", USAGE
        )
    try:
        project = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{file}: not valid TOML: {error}", USAGE) from error
    points = dict(_points(project))
    if not points:
        raise CliError(f'{file} names no plugin: add [project.entry-points.streamfold] with NAME = "MODULE"', USAGE)
    name, module = next(iter(points.items()))
    for place in (folder / "src", folder):
        if (place / module.replace(".", "/")).is_dir() or (place / f"{module.replace('.', '/')}.py").exists():
            where = str(place.resolve())
            sys.path[:] = [where, *(entry for entry in sys.path if entry != where)]
            return Plugin(name=name, module_name=module)
    raise CliError(f"{file} names the module {module!r}, which is neither in {folder / 'src'} nor in {folder}", USAGE)


def _points(project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    table = project.get("project", {}).get("entry-points", {}).get(GROUP, {})
    for name, value in table.items():
        yield str(name), str(value).partition(":")[0].strip()


def _from_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
