"""API keys, quotas per workspace, and how many bytes each workspace has logged.

Revision 0003_keys, after 0002_versions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_keys"
down_revision = "0002_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("key_id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("workspace", "key_id"),
    )
    op.create_index("api_keys_id", "api_keys", ["key_id"], unique=True)
    op.create_table(
        "quotas",
        sa.Column("workspace", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("quotas", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace"),
    )
    op.add_column("log_head", sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(
        "update log_head set bytes = "
        "(select coalesce(sum(length(body)), 0) from log where log.workspace = log_head.workspace)"
    )


def downgrade() -> None:
    op.drop_column("log_head", "bytes")
    op.drop_table("quotas")
    op.drop_index("api_keys_id", "api_keys")
    op.drop_table("api_keys")
