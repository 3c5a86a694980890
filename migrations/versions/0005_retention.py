"""Retention: what has left the log, into which files, and who is at it.

Revision 0005_retention, after 0004_erasure.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_retention"
down_revision = "0004_erasure"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("log_head", sa.Column("left_upto", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "departures",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("digest", sa.Text(), server_default="", nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("cleared", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("made_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "number"),
    )
    op.create_table(
        "retention",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("asked_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ran_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("compacted_upto", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("report", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("workspace"),
    )


def downgrade() -> None:
    op.drop_table("retention")
    op.drop_table("departures")
    op.drop_column("log_head", "left_upto")
