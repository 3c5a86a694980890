"""What ``streamfold new-plugin`` writes: files with PLUGIN_NAME, PLUGIN_MODULE and PLUGIN_CLASS to be replaced."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

PLACES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "README.md.tmpl": "README.md",
    "policy.py.tmpl": "src/PLUGIN_MODULE.py",
    "test_policy.py.tmpl": "tests/test_PLUGIN_MODULE.py",
}
"""Template → path below the plugin's folder."""


def filled(name: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every file of a plugin."""
    module = "streamfold_" + name.replace("-", "_")
    words = {
        "PLUGIN_NAME": name,
        "PLUGIN_MODULE": module,
        "PLUGIN_CLASS": "".join(part.capitalize() for part in name.replace("-", "_").split("_")),
    }
    for template, path in PLACES.items():
        text = files(__name__).joinpath(template).read_text("utf-8")
        for word, value in words.items():
            path, text = path.replace(word, value), text.replace(word, value)
        yield path, text
