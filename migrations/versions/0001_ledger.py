"""The ledger's first tables.

Revision 0001, after none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("audit_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "audit_id"),
    )
    op.create_table(
        "commits",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("grp", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("commit_no", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("watermark", sa.BigInteger(), nullable=False),
        sa.Column("changes", sa.LargeBinary(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "grp", "commit_no"),
    )
    op.create_table(
        "counters",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "name"),
        postgresql_with={"fillfactor": 20},
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dead_letters",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("dead_letter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("source_offset", sa.Text(), nullable=True),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("at_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "dead_letter_id"),
    )
    op.create_table(
        "dedup",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("dedup", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "dedup"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "deletions",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "fold_groups",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("grp", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("watermark", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("commit_no", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("checkpoint_commit", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("checkpoint_watermark", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("halted", sa.Text(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("skips", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("state_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("feed_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "grp"),
        postgresql_with={"fillfactor": 20},
    )
    op.create_table(
        "instances",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("instance_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("code_hash", sa.Text(), nullable=False),
        sa.Column("start_seq", sa.BigInteger(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("grp", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "instance_id"),
    )
    op.create_index(
        "instances_identity", "instances", ["workspace", "name", "version", "config_hash", "start_seq"], unique=True
    )
    op.create_table(
        "intakes",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("intake", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("topic", sa.Text(), server_default="", nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("duplicates", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejected", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "intake"),
        postgresql_with={"fillfactor": 20},
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("recorded_us", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("effect", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("retry_of", sa.BigInteger(), nullable=True),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_head",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace"),
        postgresql_with={"fillfactor": 20},
        sqlite_with_rowid=False,
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "prepared",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("instance_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("claim_until_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("workspace", "instance_id", "seq"),
    )
    op.create_table(
        "results",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("backend", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "backend", "hash"),
    )
    op.create_table(
        "sequences",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "source", "kind", "id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "skips",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("policy", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("workspace", "policy", "position"),
        sqlite_with_rowid=False,
    )
    op.create_index("skips_position", "skips", ["workspace", "position"], unique=False)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)


TABLES = [
    "audit",
    "commits",
    "counters",
    "dead_letters",
    "dedup",
    "deletions",
    "fold_groups",
    "instances",
    "intakes",
    "log",
    "log_head",
    "meta",
    "prepared",
    "results",
    "sequences",
    "skips",
]
