"""Heads that read a ``head_arms`` policy: how much a label counts for them while a live A/B runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamfold.core import ConfigError, Policy, Stores
from streamfold.plugins.head_arms import HeadArms


def reads_of(config: Any) -> tuple[str, ...]:
    """What a head reads for it: its setting ``arms``, if there is any."""
    return (config.arms,) if config.arms else ()


def check_arms(name: str, config: Any, read: Mapping[str, Policy]) -> None:
    """Raise ``ConfigError`` where the setting ``arms`` names another kind of policy."""
    one = read.get(config.arms)
    if one is not None and not isinstance(one, HeadArms):
        raise ConfigError(f"{name}: arms is {config.arms!r}, which is a {one.name}: name a head_arms policy")


def weight_of(data: Any, config: Any, stores: Stores) -> float:
    """How much a label counts, by the answers and labels before it."""
    if not config.arms:
        return 1.0
    weight: float = stores.of(config.arms).server.weight(data)
    return weight
