"""Merge names that are surely one entity, by events, in a thread beside the requests.

Where a live policy is set to it (:class:`NameMerger`), the names of each document are looked at once it is visible
here, and an ``entity.merged`` event is logged for every sure pair. A pair's event has one id whatever its direction, so
it is accepted once: two processes double nothing, and who takes a merge back (``undo``) is not overruled. How far the
log has been looked at is an intake of the ledger, moved with the events in one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b
from typing import Any

from streamfold.core.errors import IntakeConflict
from streamfold.core.ledger.abc import NORMAL, IntakeMove
from streamfold.core.policy import Merge, NameMerger
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.own_events import OwnEvents, own_event
from streamfold.pipelines.serve.rounds import Rounds, open_views

SOURCE = "/streamfold/merges"
INTAKE = "merges:"
"""How the names of these intakes begin."""
_TYPES = ("document.upserted", "document.extracted")
_PAGE = 64
_LOOK_S = 0.25
_SHARE = 0.25
"""Of a thread's time: the look itself takes the interpreter from the requests."""
_FAILED_S = 10.0


class Merging:
    """The merges of one serving process; it does nothing where no policy is set to merge.

    Parameters
    ----------
    events : logs them, with the moves of intakes (blocks).
    """

    def __init__(
        self,
        node: Node,
        events: OwnEvents,
    ) -> None:
        self._node, self._events = node, events
        self._log = logger()
        self._at: dict[tuple[str, str], tuple[int, int | None]] = {}
        """By workspace and intake: up to where the log was looked at, and what of that is stored."""
        self._rounds = Rounds("merging", partial(open_views, node), self._all, every_s=_LOOK_S, failed_s=_FAILED_S)

    def close(self) -> None:
        self._rounds.close()

    def _all(self, view: WorkspaceView) -> None:
        try:
            for group, member in view.servers(NameMerger):
                while member.server.merges_by_itself and not self._rounds.stopped() and self._look(view, group, member):
                    pass
        except IntakeConflict:
            self._at.clear()  # another process looks too

    def _look(self, view: WorkspaceView, group: GroupView, member: MemberView) -> bool:
        """Look at the names of the next documents; False: there are none."""
        ledger, intake = self._node.ledger, INTAKE + member.runtime.instance.name
        if (view.name, intake) not in self._at:
            stored = next((one.next_offset for one in ledger.intakes(view.name) if one.intake == intake), None)
            self._at[view.name, intake] = (stored or 0, stored)
        (before, stored), upto = self._at[view.name, intake], group.watermark
        if before >= upto or view.hides(group):  # names of what was deleted go into no event
            return False
        rows = ledger.read(view.name, before, _PAGE, upto=upto, types=_TYPES).rows
        end = rows[-1].seq if len(rows) == _PAGE else upto
        decode = self._node.registry.event_types.decode
        documents = dict.fromkeys(decode(row).data.document_id for row in rows if row.effect == NORMAL)
        merges: dict[str, Merge] = {}
        for document_id in documents:
            started = time.perf_counter()
            with view.reading([group]):
                merges.update((_id(one), one) for one in member.server.merges(document_id))
            if self._rounds.stopped((time.perf_counter() - started) * (1 / _SHARE - 1)):
                return False
        if rows:  # where there was nothing to look at, a restart looks again: cheaper than a transaction
            move = IntakeMove(intake=intake, topic=intake, expect=stored, next=end)
            raws = [
                own_event(SOURCE, "entity.merged", id_, {"entity_id": one.name, "into": one.into})
                for id_, one in merges.items()
            ]
            merged = self._events.log(view, raws, [move]).count("accepted")
            if merged:
                self._log.info("names_merged", workspace=view.name, merges=merged)
            stored = end
        self._at[view.name, intake] = (end, stored)
        return bool(rows)


def _id(one: Merge) -> str:
    pair: Iterable[Any] = sorted((one.name, one.into))
    return "merge-" + blake2b("\0".join(pair).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
