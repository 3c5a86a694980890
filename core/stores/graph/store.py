"""The store around the graph: staging, changes, bound, checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError
from streamfold.core.stores._staged import Staged
from streamfold.core.stores.declare import Graph
from streamfold.core.stores.graph.adjacency import Adjacency, Node

if TYPE_CHECKING:
    import networkx as nx

Edges = tuple[tuple[Node, ...], tuple[float, ...]]
_EDGE_BYTES, _ROW_BYTES = 28, 120


class LiveGraph(Staged[Any, Edges]):
    """The live store of :class:`Graph`. Reads inside an event see the state before the event.

    Parameters
    ----------
    hold : False on the fold's side of ``fold_reads=False``: only sources and undrained changes are kept.
    """

    def __init__(self, declaration: Graph, *, hold: bool = True) -> None:
        super().__init__(
            declaration.name, bound=declaration.max_bytes, on_full=declaration.on_full, hold=hold, by_bytes=True
        )

    def _reset(self) -> None:
        super()._reset()
        self._graph = Adjacency()

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, source: Node, targets: Sequence[Node], weights: Sequence[float] | None = None) -> None:
        """Set a source's edges in place of those it had; visible after ``keep``. No targets: as ``delete``.

        Parameters
        ----------
        targets : distinct nodes.
        weights : one > 0 for each target; 1 where left out.
        """
        nodes = tuple(self._checked(node) for node in targets)
        values = (1.0,) * len(nodes) if weights is None else tuple(float(weight) for weight in weights)
        if len(values) != len(nodes):
            raise StoreError(f"store {self.name!r}: {len(nodes)} targets with {len(values)} weights")
        if len(set(nodes)) != len(nodes):
            raise StoreError(f"store {self.name!r}: a target of {source!r} comes twice: add its weights up")
        for weight in values:
            if not 0 < weight < float("inf"):
                raise StoreError(f"store {self.name!r}: weight {weight} is not in 0 … ∞")
        if nodes:
            self._stage_put(self._checked(source), (nodes, values))
        else:
            self._stage_delete(self._checked(source))

    def delete(self, source: Node) -> None:
        """Remove a source's edges; nodes that no edge touches any more vanish. An unknown one is no error."""
        self._stage_delete(self._checked(source))

    def _checked(self, node: Node) -> Node:
        if isinstance(node, str) or (type(node) is int and 0 <= node < 1 << 63):
            return node
        raise StoreError(f"store {self.name!r}: node {node!r} is neither a str nor a whole number in 0 … 2⁶³ − 1")

    # -- reads --------------------------------------------------------------------------------------------------------
    def __contains__(self, node: Node) -> bool:
        self._readable()
        return node in self._graph

    def contains(self) -> Callable[[Node], bool]:
        """Return what says whether a node is there, for many questions in a row; good until the next write."""
        self._readable()
        return self._graph.contains()

    def targets(self, source: Node) -> tuple[list[Node], npt.NDArray[np.float32]]:
        """Return a source's targets in the order given, and their weights ``(n,) float32``: O(targets)."""
        self._readable()
        return self._graph.targets(source)

    def sources(self, target: Node) -> tuple[list[Node], npt.NDArray[np.float32]]:
        """Return the sources of a node, sorted, and their weights ``(n,) float32``: O(n log n)."""
        self._readable()
        return self._graph.sources(target)

    def source_ids(self, target: Node) -> npt.NDArray[np.int64]:
        """Return the sources of a node that are ints ``(n,) int64``, in no particular order."""
        self._readable()
        return self._graph.source_ids(target)

    def source_ids_many(
        self, targets: Sequence[Node]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Return the int sources of several nodes behind one another, their numbers, and how many each node has."""
        self._readable()
        return self._graph.source_ids_many(targets)

    def target_numbers(self, sources: Iterable[Node]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Return the targets of several sources behind one another, as numbers, and how many each source has."""
        self._readable()
        return self._graph.target_numbers(sources)

    def numbers(self, nodes: Sequence[Node]) -> list[int]:
        """Return the numbers of nodes, as in :meth:`target_numbers`, good until the next write; no unknown ones."""
        self._readable()
        return self._graph.numbers(nodes)

    def count_ids(self, target: Node) -> int:
        """How many of a node's sources are ints."""
        self._readable()
        return self._graph.count_ids(target)

    def in_degree(self, target: Node) -> int:
        """How many sources a node has: O(1)."""
        self._readable()
        return self._graph.in_degree(target)

    def in_degrees(self, targets: Sequence[Node]) -> list[int]:
        """How many sources each of several nodes has."""
        self._readable()
        return self._graph.in_degrees(targets)

    def nodes(self) -> Iterable[Node]:
        """All nodes, in no particular order; do not write while going through them."""
        self._readable()
        return self._graph.nodes()

    def personalized_pagerank(
        self, seeds: Mapping[Node, float], *, damping: float = 0.5, epsilon: float = 1e-5, reached: bool = False
    ) -> dict[Node, float]:
        """Return the PageRank around ``seeds``; see :meth:`Adjacency.personalized_pagerank`."""
        self._readable()
        return self._graph.personalized_pagerank(seeds, damping=damping, epsilon=epsilon, reached=reached)

    def subgraph(self, nodes: Iterable[Node], *, depth: int = 1, limit: int = 1000) -> nx.Graph[Node]:
        """Return what lies at most ``depth`` edges from some nodes, as networkx graph with edge ``weight``.

        Nearer nodes first, among equals by name, until ``limit`` nodes are in.
        """
        import networkx as nx

        self._readable()
        found: nx.Graph[Node] = nx.Graph()
        ring = [node for node in dict.fromkeys(nodes) if node in self._graph][:limit]
        found.add_nodes_from(ring)
        for _ in range(depth):
            beyond: list[Node] = []
            for node in ring:
                for ends, weights in (self._graph.targets(node), self._graph.sources(node)):
                    for end, weight in sorted(zip(ends, weights.tolist(), strict=True), key=lambda one: str(one[0])):
                        if end not in found:
                            if len(found) >= limit:
                                continue
                            beyond.append(end)
                        found.add_edge(node, end, weight=weight)
            ring = beyond
        return found

    def contents(self) -> dict[tuple[Node, Node], float]:
        """Weights by source and target."""
        self._readable()
        found: dict[tuple[Node, Node], float] = {}
        for source in self._live:
            nodes, weights = self._graph.targets(source)
            found |= {(source, node): weight for node, weight in zip(nodes, weights.tolist(), strict=True)}
        return found

    # -- for Staged ---------------------------------------------------------------------------------------------------
    def _size(self, value: Edges) -> int:
        return _ROW_BYTES + sum(_EDGE_BYTES + (len(node) if isinstance(node, str) else 8) for node in value[0])

    def _pack_values(self, values: list[Edges]) -> Any:
        return [(nodes, None if set(weights) == {1.0} else weights) for nodes, weights in values]

    def _unpack_values(self, values: Any) -> Iterator[Edges]:
        for nodes, weights in values:
            yield tuple(nodes), (1.0,) * len(nodes) if weights is None else tuple(weights)

    def _write(self, puts: dict[Any, Edges], deletes: list[Any]) -> None:
        for source in deletes:
            self._graph.remove(source)
        for source, (nodes, weights) in puts.items():
            self._graph.put(source, nodes, weights)

    def _save(self, folder: Path) -> None:
        nodes, arrays = self._graph.rows()
        save_file(arrays, folder / "edges.safetensors")
        (folder / "nodes.msgpack").write_bytes(pack(nodes))

    def _load(self, folder: Path) -> None:
        if self._hold:
            nodes = unpack((folder / "nodes.msgpack").read_bytes(), list[int | str])
            self._graph = Adjacency.of(nodes, load_file(folder / "edges.safetensors"))

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for source in sorted(self._live, key=lambda node: (isinstance(node, str), node)):
            nodes, weights = self._graph.targets(source)
            digest.update(pack((source, nodes, weights.tolist())))
        return digest.hexdigest()
