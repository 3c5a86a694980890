"""Alembic migrations of the ledger: ``env`` runs them on a connection that the ledger hands over, never by itself.

Additive first, destructive a release later. A test holds the migrated database equal to ``core.ledger.schema``.
"""
