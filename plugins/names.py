"""Extractor ``names``: asks nobody. ``graph_index`` finds names and relations itself, offline; this adds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamfold.core import Backend, Budget, ConfigError, Extraction, Passage, Spend, Usage


class Names:
    """The default."""

    name = "names"
    version = "1"
    asks = False
    concurrency = 1
    budget = Budget()

    def extract(self, passage: Passage, spend: Spend) -> Extraction:
        return Extraction()

    def estimate(self, passage: Passage) -> tuple[int, Usage]:
        return 0, Usage()


def make(config: Mapping[str, Any]) -> Names:
    """Build it; it has no settings."""
    if config:
        raise ConfigError(f"names: unknown setting {min(config)!r}: it has none")
    return Names()


BACKEND = Backend(kind="extractor", name="names", make=make, doc="Names and relations offline; asks nobody.")
