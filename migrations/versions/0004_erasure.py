"""Erasures: what is to be removed, how far each group is, and keyed hashes of the erased.

Revision 0004_erasure, after 0003_keys.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_erasure"
down_revision = "0003_keys"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("log_head", sa.Column("erased_us", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "erasures",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("hidden_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completed_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("found", sa.LargeBinary(), nullable=True),
        sa.Column("report", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "position"),
    )
    op.create_index(
        "erasures_pending",
        "erasures",
        ["workspace", "position"],
        sqlite_where=sa.text("completed_us = 0"),
        postgresql_where=sa.text("completed_us = 0"),
    )
    op.create_table(
        "erasure_groups",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("grp", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("removed", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "position", "grp"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "erased_subjects",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("erased_us", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "hash"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("erased_subjects", "erasure_groups", "erasures"):
        op.drop_table(table)
    op.drop_column("log_head", "erased_us")
