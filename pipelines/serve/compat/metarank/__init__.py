"""Metarank's REST under ``/compat/metarank``: the routes that its clients rely on, on our log and views.

- :mod:`~.dialect`: how a route is declared here, and the shape of refusals
- :mod:`~.feedback`: events in; :mod:`~.ranking`: ``rank`` and ``recommend``; :mod:`~.health`: ``health``, ``metrics``

What differs: there is nothing to train, each event is learned as it comes. Events become ours as
``pipelines/peers/metarank.py`` says.
"""

from streamfold.pipelines.serve.compat.metarank import feedback, health, ranking

__all__ = ["ENDPOINTS"]

ENDPOINTS = [endpoint for module in (feedback, ranking, health) for endpoint in module.ENDPOINTS]
