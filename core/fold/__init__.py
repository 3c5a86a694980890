"""From log to commit: prepare (parallel, pure), fold (ordered, one fenced writer per group), recover, verify, erase."""

from streamfold.core.fold.eraser import Eraser
from streamfold.core.fold.erasure import holds_erased
from streamfold.core.fold.extract import Extracting
from streamfold.core.fold.group import GroupFold, Turn
from streamfold.core.fold.lanes import LANES, Lane
from streamfold.core.fold.prepare import Preparer
from streamfold.core.fold.prepared import LedgerPrepared, MemoryPrepared, PreparedValues
from streamfold.core.fold.retention import Keeper
from streamfold.core.fold.runner import EmbeddedRunner, FoldRunner
from streamfold.core.fold.verify import Verdict, note_deltas, verify_group

__all__ = [
    "LANES",
    "EmbeddedRunner",
    "Eraser",
    "Extracting",
    "FoldRunner",
    "GroupFold",
    "Keeper",
    "Lane",
    "LedgerPrepared",
    "MemoryPrepared",
    "PreparedValues",
    "Preparer",
    "Turn",
    "Verdict",
    "holds_erased",
    "note_deltas",
    "verify_group",
]
