"""Gorse's REST under ``/compat/gorse/api``: the routes that its clients rely on, on our log and views.

- :mod:`~.dialect`: how a route is declared here, refusals as text, what several routes read of a request
- :mod:`~.things`: users and items; :mod:`~.feedback`: what users did; :mod:`~.bulk`: all of it as lines of JSON
- :mod:`~.lists`: what is recommended, new, popular, alike; :mod:`~.health`

What differs: nothing is fitted, so that feedback shows in the next answer; what an answer shows is logged as an
exposure; deleting a user erases them. Rows become events as ``pipelines/peers/gorse.py`` says.
"""

from streamfold.pipelines.serve.compat.gorse import bulk, feedback, health, lists, things

__all__ = ["ENDPOINTS"]

ENDPOINTS = [endpoint for module in (feedback, lists, things, bulk, health) for endpoint in module.ENDPOINTS]
