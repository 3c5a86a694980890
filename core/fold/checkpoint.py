"""Compact a group's feed: recover a fresh copy, write it as files, point to it, drop what it covers.

The copy is recovered by the same code as every worker and view, so the folding thread is never held, and each
checkpoint exercises recovery. The pointer moves only under the writer's epoch.
"""

from __future__ import annotations

import logging
from typing import Any

from streamfold.core import crash
from streamfold.core.context import Context, Group
from streamfold.core.errors import CorruptCheckpoint, Fenced
from streamfold.core.fold.stores import GroupStores, checkpoint_root, recover
from streamfold.core.ledger.abc import Lease
from streamfold.core.stores import LiveVectors
from streamfold.core.stores.checkpoint import drop_old_checkpoints, write_checkpoint

log = logging.getLogger("streamfold.checkpoint")


def checkpoint_meta(context: Context, workspace: str, group: str, *, commit_no: int, watermark: int) -> dict[str, Any]:
    """Return what a checkpoint says about itself."""
    return {
        "workspace": workspace,
        "group": group,
        "commit_no": commit_no,
        "watermark": watermark,
        "timeline_id": context.ledger.timeline_id,
    }


def checkpoint_group(context: Context, workspace: str, group: Group, lease: Lease, *, purge: bool = False) -> int:
    """Write a checkpoint of a group at its newest commit; returns the state's bytes (0: nothing was written).

    ``purge``: write one also where there is one of that commit, without anything that deletes have left in its stores.
    """
    stores = GroupStores(context, group, side="view")
    try:
        commit_no, watermark = recover(context, workspace, group, stores)
        state = context.ledger.group(workspace, group.name)
        if commit_no == state.checkpoint_commit and not purge:
            return 0
        for store in stores.stores.values():
            if purge and isinstance(store, LiveVectors):
                store.purge()
        root = checkpoint_root(context, workspace, group.name)
        meta = checkpoint_meta(context, workspace, group.name, commit_no=commit_no, watermark=watermark)
        name = write_checkpoint(stores.stores, root, meta=meta)
        crash.point("checkpoint.written")
        context.ledger.set_checkpoint(workspace, lease, name=name, commit_no=commit_no, watermark=watermark)
        drop_old_checkpoints(root, {name, state.checkpoint} if state.checkpoint else {name})
        log.info("checkpoint workspace=%s group=%s commit=%d name=%s", workspace, group.name, commit_no, name)
        return max(1, stores.state_bytes())
    except (Fenced, CorruptCheckpoint) as error:
        log.warning("checkpoint_not_written workspace=%s group=%s: %s", workspace, group.name, error)
        return 0
    finally:
        stores.close()
