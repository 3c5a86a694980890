"""Rows of other recommenders as events: what ``/compat`` takes and what ``import`` reads are the same rows.

:mod:`~.rows` is what both peers share, :mod:`~.gorse` and :mod:`~.metarank` are one peer's rows each. An event made of
a row has an id made of its content, so that what was imported and what is sent meet: the second has no effect.
"""
