"""Characteristic mistakes, each a small change of the real source: what finds none of them proves nothing."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from streamfold.core.fold.group import GroupFold
from streamfold.core.ledger import _groups, sqlite
from streamfold.core.ledger._groups import GroupMixin
from streamfold.core.ledger.sqlite import SqliteLedger
from streamfold.core.stores import checkpoint
from streamfold.core.views.view import GroupView, WorkspaceView


@dataclass(frozen=True)
class Mutant:
    """A mistake: in ``owner.name``, ``old`` is written as ``new``."""

    mistake: str
    owner: Any
    name: str
    old: str
    new: str
    seed: int = 0
    """Where to begin to look: schedules that find it come sooner from here."""

    @contextmanager
    def made(self) -> Iterator[None]:
        """Run with the mistake in the code."""
        original = getattr(self.owner, self.name)
        with patch.object(self.owner, self.name, self._changed(original)):
            yield

    def _changed(self, original: Any) -> Any:
        source = original if isinstance(original, str) else textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.name} reads otherwise now: write the mutant {self.mistake!r} anew"
        changed = source.replace(self.old, self.new)
        if isinstance(original, str):
            return changed
        namespace = dict(original.__globals__)
        code = compile("from __future__ import annotations\n" + changed, f"<mutant {self.name}>", "exec")
        exec(code, namespace)
        # The function has to see what the simulator puts in place of its module's names.
        made = type(original)(namespace[self.name].__code__, original.__globals__, self.name, original.__defaults__)
        made.__kwdefaults__ = original.__kwdefaults__
        return made


MUTANTS = (
    Mutant(
        "watermark committed before the changes", GroupMixin, "_commit",
        "self._write(job, durable=False)",
        "self._write(lambda tx: (tx.run(ADVANCE, advance), add_dead(tx, workspace, dead)), durable=False); "
        "crash.point('commit.between'); keep and self._write(lambda tx: tx.run(KEEP, keep), durable=False)",
    ),
    Mutant(
        "lease and watermark not checked at commit", _groups, "ADVANCE",
        "and epoch = ? and watermark = ? and commit_no = ?",
        "and ? is not null and ? is not null and ? is not null",
        seed=700,  # one schedule in 250 notices
    ),
    Mutant(
        "warm stores kept when a commit's fate is unknown", GroupFold, "turn",
        "except LedgerUnavailable:\n        self.drop()\n        raise",
        "except LedgerUnavailable:\n        raise",
        seed=60,
    ),
    Mutant("checkpoint not synced before it is pointed to", checkpoint, "_sync_tree", "sync(path)", "pass"),
    Mutant("folder of a new checkpoint not synced", checkpoint, "_sync_tree", "sync(folder)", "pass"),
    Mutant("dedup rows not written", sqlite, "_insert", "tx.many(_DEDUP, dedups)", "pass"),
    Mutant(
        "append acknowledged before it is durable", SqliteLedger, "append",
        "self._write(job)",
        "self._write(job, durable=False)",
    ),
    Mutant(
        "view's position moved before its commits are applied", WorkspaceView, "_advance",
        "passed = watermark if reached >= commit_no else 0",
        "passed = watermark",
    ),
    Mutant(
        "gap in the feed not noticed by a view", GroupView, "apply",
        "if commit.commit_no != self.commit_no + 1:",
        "if False:",
    ),
)  # fmt: skip
