"""Compute the list of packages: every folder with an `__init__.py` below the four that pyproject.toml maps."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
FOLDERS = ("core", "plugins", "pipelines", "migrations")


def packages() -> list[str]:
    found = [f"streamfold.{folder}" for folder in FOLDERS]
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            parts = init.parent.relative_to(ROOT).parts
            if len(parts) > 1:
                found.append(".".join(("streamfold", *parts)))
    return found


setup(packages=packages())
