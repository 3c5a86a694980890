"""The documentation says what the code says: generated pages are current, all is named, links and examples work."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamfold.core.events import builtin_types
from streamfold.core.hooks import Hooks
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("settings.md", "events.md", "hooks.md", "rest.md", "metrics.md", "cli.md")
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def generator() -> Iterator[Any]:
    """docs/generate_reference.py as a module."""
    yield _load("generate_reference", DOCS / "generate_reference.py")
    del sys.modules["generate_reference"]


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _page(name: str) -> str:
    return (DOCS / "reference" / name).read_text("utf-8")


def _documents() -> list[Path]:
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return [*(file for file in top if file.exists()), *sorted(DOCS.rglob("*.md"))]


def test_the_generator_makes_every_page(generator: Any) -> None:
    assert tuple(generator.PAGES) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_generator_makes(generator: Any, name: str) -> None:
    assert _page(name) == generator.PAGES[name](), "stale: run `python docs/generate_reference.py`"


def test_every_setting_is_documented_with_a_meaning(generator: Any) -> None:
    page, found = _page("settings.md"), list(generator.settings())
    assert {one.path.partition(".")[0] for one in found} == set(Settings.model_fields)
    assert [one.path for one in found if not one.meaning] == []
    assert [one.path for one in found if f"`{one.path}`" not in page and f"[{one.path}]" not in page] == []


def test_the_meanings_name_settings_that_exist(generator: Any) -> None:
    assert set(generator._MEANINGS) <= {one.path for one in generator.settings()}


def test_every_event_type_is_documented() -> None:
    page = _page("events.md")
    assert [one.name for one in builtin_types() if f"### {one.name}\n" not in page or not one.doc] == []


def test_every_hook_is_documented(generator: Any, tmp_path: Path) -> None:
    registered = {
        name for name in vars(Registry(Settings(data=tmp_path, policies={}, backends={})).hook) if name[0] != "_"
    }
    declared = {name for name in vars(Hooks) if not name.startswith("_")}
    assert {name for name, _ in generator.hook_specs()} == declared == registered
    assert [name for name in declared if f"## {name}\n" not in _page("hooks.md")] == []


def test_every_route_is_documented(generator: Any) -> None:
    found, page = generator.routes(), _page("rest.md")
    assert ("POST", "/v1/events") in found
    assert [f"{method} {path}" for method, path in found if f"| `{method} {path}` |" not in page] == []


def test_no_route_is_documented_that_does_not_exist(generator: Any) -> None:
    named = set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", _page("rest.md"), re.MULTILINE))
    assert named == {f"{method} {path}" for method, path in generator.routes()}


def test_every_metric_is_documented(generator: Any) -> None:
    found, page = generator.metrics(), _page("metrics.md")
    assert found
    assert [name for name, _, _ in found if f"| `{name}` |" not in page] == []
    others = generator.other_metrics()
    for process, of in others.items():
        section = page.partition(f"\n## {process}\n")[2].partition("\n## ")[0]
        assert [name for name, _, _ in of if f"| `{name}` |" not in section] == []
    assert set(generator._LABELS) <= {name for name, _, _ in [*found, *(one for of in others.values() for one in of)]}


def test_every_command_and_option_is_documented(generator: Any) -> None:
    page, missing = _page("cli.md"), []
    for path, command in generator.commands():
        section = page.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        options = [name for p in command.params if p.name != "help" for name in p.opts if name.startswith("-")]
        missing += [f"{path} {name}" for name in options if f"`{name}`" not in section]
        missing += [] if section and command.help else [path]
    assert missing == []


def test_commands_in_the_pages_exist(generator: Any) -> None:
    commands = {path for path, _ in generator.commands()}
    groups = {path.partition(" ")[0] for path in commands if " " in path}
    unknown = []
    for file in _documents():
        for block in _FENCED.findall(file.read_text("utf-8")):
            for first, second in re.findall(r"(?:^|&& |\| )streamfold ([a-z-]+)(?: ([a-z-]+))?", block, re.MULTILINE):
                name = f"{first} {second}" if first in groups else first
                if name not in commands:
                    unknown.append(f"{file.relative_to(ROOT)}: streamfold {name}")
    assert unknown == []


def test_every_relative_link_resolves() -> None:
    broken = []
    for file in _documents():
        for target in _LINK.findall(_FENCED.sub("", file.read_text("utf-8"))):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            place = (file.parent / path).resolve() if path else file
            if not place.exists() or (anchor and anchor not in _anchors(place)):
                broken.append(f"{file.relative_to(ROOT)}: {target}")
    assert broken == []


def _anchors(file: Path) -> set[str]:
    """The anchors that headings get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", file.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_python_of_write_a_policy_runs() -> None:
    """All blocks in order, in one namespace; the last one folds events with live stores and asserts."""
    page = (DOCS / "how-to" / "write-a-policy.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    assert "assert" in blocks[-1]
    name = "streamfold_hot"
    module = ModuleType(name)
    sys.modules[name] = module
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"write-a-policy.md, block {number + 1}", "exec"), module.__dict__)
    finally:
        del sys.modules[name]


def test_the_toml_of_the_pages_is_valid() -> None:
    import tomllib

    for file in _documents():
        for block in re.findall(r"^```toml\n(.*?)^```$", file.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            tomllib.loads(block)


def test_the_mapping_and_the_settings_of_the_pages_are_accepted() -> None:
    import tomllib

    from streamfold.core.events import EventMapping
    from streamfold.core.events.debezium import parse_tables

    page = (DOCS / "how-to" / "send-events.md").read_text("utf-8")
    mapping, kafka, debezium = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert EventMapping.parse(tomllib.loads(mapping)).type == "interaction.observed"
    for topic in tomllib.loads(debezium)["kafka"]["topics"].values():
        assert parse_tables(topic["options"])
    settings = Settings(**tomllib.loads(kafka))
    assert EventMapping.parse(settings.kafka.topics["ratings"].options).time_format == "s"
    page = (DOCS / "how-to" / "run-distributed.md").read_text("utf-8")
    [text] = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    table = tomllib.loads(text.replace('"…"', f'"{"0" * 64}"'))
    assert Settings(**table).serve.keys[0].workspace == "default"
