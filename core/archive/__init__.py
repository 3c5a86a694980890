"""Events that have left the log: Parquet files, written whole or not at all, and the log read together with them.

- :mod:`~streamfold.core.archive.files`: one file: columns, writing, reading, leaving events out
- :mod:`~streamfold.core.archive.history`: log and archive as one, and what is in neither any more
"""

from streamfold.core.archive.history import History, Reach

__all__ = ["History", "Reach"]
