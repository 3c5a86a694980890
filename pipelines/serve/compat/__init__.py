"""Other services' routes, below ``/compat``: a client of theirs is pointed here and goes on as before.

Each sub-package speaks one service's dialect: its paths, its JSON, its status codes and its shape of refusals; keys,
workspaces, quotas, the log and the views are ours. What is written becomes events like any other (:mod:`~.intake`),
what is read comes from the views.
"""

from streamfold.pipelines.serve.compat import gorse, lightrag, metarank

__all__ = ["ENDPOINTS"]

ENDPOINTS = [*lightrag.ENDPOINTS, *gorse.ENDPOINTS, *metarank.ENDPOINTS]
