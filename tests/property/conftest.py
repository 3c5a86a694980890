"""The property tests of the vector index use the oracle of its unit tests, those of folds the simulator's."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "unit/core/stores/vectors"), str(TESTS / "simulation")]
