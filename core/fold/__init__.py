"""From log to commit: prepare (parallel, pure), fold (ordered, one fenced writer per group), recover, verify."""

from streamfold.core.fold.group import GroupFold, Turn
from streamfold.core.fold.lanes import LANES, Lane
from streamfold.core.fold.prepare import Preparer
from streamfold.core.fold.prepared import LedgerPrepared, MemoryPrepared, PreparedValues
from streamfold.core.fold.runner import EmbeddedRunner, FoldRunner
from streamfold.core.fold.verify import Verdict, verify_group

__all__ = [
    "LANES",
    "EmbeddedRunner",
    "FoldRunner",
    "GroupFold",
    "Lane",
    "LedgerPrepared",
    "MemoryPrepared",
    "PreparedValues",
    "Preparer",
    "Turn",
    "Verdict",
    "verify_group",
]
