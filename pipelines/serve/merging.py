"""Merge names that are surely one entity, by events, in a thread beside the requests.

Where a live policy is set to it (:class:`NameMerger`), the names of each document are looked at once it is visible
here, and an ``entity.merged`` event is logged for every sure pair. A pair's event has one id whatever its direction, so
it is accepted once: two processes double nothing, and who takes a merge back (``undo``) is not overruled. How far the
log has been looked at is an intake of the ledger, moved with the events in one transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from streamfold.core.errors import IntakeConflict, InvalidEvent, LedgerError
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.ledger.abc import NORMAL, IntakeMove
from streamfold.core.policy import Merge, NameMerger
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger

SOURCE = "/streamfold/merges"
INTAKE = "merges:"
"""How the names of these intakes begin."""
_TYPES = ("document.upserted", "document.extracted")
_PAGE = 64
_LOOK_S = 0.25
_SHARE = 0.25
"""Of a thread's time: the look itself takes the interpreter from the requests."""
Accept = Callable[[str, Sequence[CloudEvent]], list[NewEvent | InvalidEvent]]


class Merging:
    """The thread of one serving process; it does nothing where no policy is set to merge.

    Parameters
    ----------
    accept : validates events of a workspace.
    """

    def __init__(self, node: Node, accept: Accept) -> None:
        self._node, self._accept = node, accept
        self._stop = threading.Event()
        self._log = logger()
        self._at: dict[tuple[str, str], tuple[int, int | None]] = {}
        """By workspace and intake: up to where the log was looked at, and what of that is stored."""
        self._thread = threading.Thread(target=self._loop, name="merging", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _loop(self) -> None:
        while not self._stop.wait(_LOOK_S):
            views = self._node.views
            for view in views.opened() if views is not None else ():
                self._safely(view)

    def _safely(self, view: WorkspaceView) -> None:
        try:
            for group, member in view.servers(NameMerger):
                while member.server.merges_by_itself and not self._stop.is_set() and self._look(view, group, member):
                    pass
        except IntakeConflict:
            self._at.clear()  # another process looks too
        except LedgerError as error:
            self._log.warning("merging_waits", workspace=view.name, error=str(error))
        except Exception as error:
            self._log.error("merging_failed", workspace=view.name, error=repr(error), exc_info=error)
            self._stop.wait(10)

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
            if self._stop.wait((time.perf_counter() - started) * (1 / _SHARE - 1)):
                return False
        if rows:  # where there was nothing to look at, a restart looks again: cheaper than a transaction
            self._append(
                view, self._events(view.name, merges), IntakeMove(intake=intake, topic=intake, expect=stored, next=end)
            )
            stored = end
        self._at[view.name, intake] = (end, stored)
        return bool(rows)

    def _events(self, workspace: str, merges: dict[str, Merge]) -> list[NewEvent]:
        raws = [
            CloudEvent(
                specversion="1.0", id=id_, source=SOURCE, type="entity.merged",
                data=msgspec.Raw(msgspec.json.encode({"entity_id": one.name, "into": one.into})),
            )
            for id_, one in merges.items()
        ]  # fmt: skip
        return [one for one in self._accept(workspace, raws) if not isinstance(one, InvalidEvent)]

    def _append(self, view: WorkspaceView, events: Sequence[NewEvent], move: IntakeMove) -> None:
        node = self._node
        done = node.ledger.append(view.name, events, recorded_us=node.context.clock.now_us(), moves=[move])
        if "accepted" in done.outcomes:
            node.appended(view.name)
            self._log.info("names_merged", workspace=view.name, merges=done.outcomes.count("accepted"))


def _id(one: Merge) -> str:
    pair: Iterable[Any] = sorted((one.name, one.into))
    return "merge-" + blake2b("\0".join(pair).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
