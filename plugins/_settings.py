"""Checks of a policy's settings, each with the error that names the policy, the setting and what it may be."""

from __future__ import annotations

import math
from typing import Any

from streamfold.core import ConfigError


def at_least(policy: str, config: Any, least: float, *names: str) -> None:
    """Check that settings are finite numbers from ``least`` on."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{policy}: {name} is {value}: it must be at least {least:g}")


def within(policy: str, config: Any, **ranges: tuple[float, float]) -> None:
    """Check that settings are in their ranges, both ends included."""
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise ConfigError(f"{policy}: {name} is {value}: it must be in {least:.15g}…{most:.15g}")


def one_of(policy: str, config: Any, **known: tuple[str, ...]) -> None:
    """Check that settings are among the words they may be."""
    for name, words in known.items():
        value = getattr(config, name)
        if value not in words:
            raise ConfigError(f"{policy}: {name} is {value!r}: {', '.join(words[:-1])} or {words[-1]}")
