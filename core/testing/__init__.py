"""Testing aids that are shipped: a small world of log, fold and view in one process.

Nothing outside of tests imports this package.
"""

from streamfold.core.testing.world import World, plugin

__all__ = ["World", "plugin"]
