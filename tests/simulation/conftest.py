"""The simulator's modules lie beside the tests (pytest's importlib mode finds no siblings by itself)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
