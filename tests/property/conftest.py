"""The property tests of the vector index use the oracle of its unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/core/stores/vectors"))
