"""Run the migrations on the connection in ``config.attributes["connection"]``, inside the caller's transaction."""

from __future__ import annotations

from alembic import context

from streamfold.core.ledger.schema import metadata


def run() -> None:
    """Upgrade online; there is no offline mode, because the ledger migrates itself when it is opened."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


run()
