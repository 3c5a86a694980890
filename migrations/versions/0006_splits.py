"""Live A/B: which share of the users a candidate answers, the experiment that this is, whether training is weighted.

Revision 0006_splits, after 0005_retention. Additive.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_splits"
down_revision = "0005_retention"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("fold_groups", sa.Column("share_ppm", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("fold_groups", sa.Column("experiment", sa.Text(), server_default="", nullable=False))
    op.add_column("fold_groups", sa.Column("weighted", sa.Boolean(), server_default=sa.text("true"), nullable=False))


def downgrade() -> None:
    for name in ("weighted", "experiment"):
        op.drop_column("fold_groups", name)
    op.drop_column("fold_groups", "share_ppm")
