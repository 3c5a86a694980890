"""The ``Graph`` store: a weighted graph whose edges belong to their source, so that an update is a set difference."""

from streamfold.core.stores.graph.adjacency import Adjacency, Node
from streamfold.core.stores.graph.store import Edges, LiveGraph

__all__ = ["Adjacency", "Edges", "LiveGraph", "Node"]
