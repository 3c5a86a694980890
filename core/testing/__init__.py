"""The conformance kit: is a policy right? Shipped for authors of plugins, and for our own tests.

- :func:`check_policy` and :func:`parametrize_with_checks` run the checks of
  :mod:`streamfold.core.testing.checks` on a policy; ``streamfold check-plugin`` does the same from a shell
- :class:`World`: log, folds and views in one process, driven by hand; :class:`Case`, :class:`Lab`: what checks run on
- :func:`stream`: events of any type; :mod:`~streamfold.core.testing.strategies`: the same for hypothesis
- :mod:`~streamfold.core.testing.pytest_plugin`: fixtures (active wherever streamfold is installed)
- :mod:`~streamfold.core.testing.broken`: a broken policy per check

Nothing that runs in production imports this package. Names are loaded when first used: pytest imports this module at
its start, through the plugin's entry point, whether a test needs it or not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamfold.core.testing.checks import CHECKS
    from streamfold.core.testing.conformance import Result, check_policy, parametrize_with_checks, run_checks
    from streamfold.core.testing.lab import Case, CheckFailed, Lab
    from streamfold.core.testing.streams import stream
    from streamfold.core.testing.world import World, plugin

__all__ = [
    "CHECKS",
    "Case",
    "CheckFailed",
    "Lab",
    "Result",
    "World",
    "check_policy",
    "parametrize_with_checks",
    "plugin",
    "run_checks",
    "stream",
]

_HOMES = {
    "CHECKS": "checks",
    **dict.fromkeys(("Result", "check_policy", "parametrize_with_checks", "run_checks"), "conformance"),
    **dict.fromkeys(("Case", "CheckFailed", "Lab"), "lab"),
    "stream": "streams",
    **dict.fromkeys(("World", "plugin"), "world"),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
