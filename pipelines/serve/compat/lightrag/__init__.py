"""LightRAG's REST under ``/compat/lightrag``: the routes that its clients rely on, on our log and views.

- :mod:`~.dialect`: how a route is declared here, and the shape of refusals; :mod:`~.form`: forms and uploads
- :mod:`~.writing`: documents in and out; ids are LightRAG's (``doc-`` and the MD5 of the source's name)
- :mod:`~.shelf`: documents with their states, as far as they are folded; :mod:`~.tracking`: the routes that show them
- :mod:`~.asking`: ``query``, ``query/stream``, ``query/data``; :mod:`~.answers`: what stands in ``response``
- :mod:`~.graphs`: the graph; :mod:`~.session`: ``health``, ``auth-status``, ``login``

What differs: nothing is ever ``busy`` (a deletion is an event like any other and hides at once), and
``PUT /documents/{id}``, which LightRAG lacks, replaces a document.
"""

from streamfold.pipelines.serve.compat.lightrag import asking, graphs, session, tracking, writing

__all__ = ["ENDPOINTS"]

ENDPOINTS = [endpoint for module in (writing, tracking, asking, graphs, session) for endpoint in module.ENDPOINTS]
