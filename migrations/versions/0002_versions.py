"""Versions: generations and rates of instances, promotions and retirements of groups, what a halt is about.

Revision 0002_versions, after 0001. Additive; skips are filed under version and configuration from now on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_versions"
down_revision = "0001"
branch_labels = None
depends_on = None

_IDENTITY = ["workspace", "name", "version", "config_hash", "start_seq"]


def upgrade() -> None:
    for name in ("generation", "rate"):
        op.add_column("instances", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.drop_index("instances_identity", "instances")
    op.create_index("instances_identity", "instances", [*_IDENTITY, "generation"], unique=True)
    op.add_column("fold_groups", sa.Column("auto", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("fold_groups", sa.Column("replaces", sa.Text(), nullable=True))
    for name in ("live_from", "retire_us"):
        op.add_column("fold_groups", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("fold_groups", sa.Column("halted_by", sa.Text(), nullable=True))
    op.add_column("fold_groups", sa.Column("halted_at", sa.BigInteger(), nullable=True))
    # until now every shadow took over by itself
    op.execute(
        "update fold_groups set auto = true where exists (select 1 from instances i where i.slot = 'shadow' "
        "and i.workspace = fold_groups.workspace and i.grp = fold_groups.grp)"
    )
    key = "i.name || '@' || cast(i.version as text)"
    op.execute(
        f"insert into skips (workspace, policy, position) select distinct s.workspace, {key} || '-' || "
        f"substr(i.config_hash, 1, 8), s.position from skips s join instances i on i.workspace = s.workspace and "
        f"s.policy = {key}"
    )
    op.execute(
        f"delete from skips where exists (select 1 from instances i where i.workspace = skips.workspace and "
        f"skips.policy = {key})"
    )


def downgrade() -> None:
    for name in ("halted_at", "halted_by", "retire_us", "live_from", "replaces", "auto"):
        op.drop_column("fold_groups", name)
    op.drop_index("instances_identity", "instances")
    op.create_index("instances_identity", "instances", _IDENTITY, unique=True)
    for name in ("rate", "generation"):
        op.drop_column("instances", name)
