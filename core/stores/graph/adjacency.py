"""Compact adjacency with edges that come and go: the sources of a node, its targets, PageRank around it.

A source's edges are set as a whole and removed as a whole; a node is there as long as an edge touches it. Each edge
knows its place in its target's list, so taking it out is a swap with the last one: putting or removing a source costs
O(its edges), whatever else is stored, also where a target has 10,000 sources. An edge takes 20 bytes and two entries
of 4 bytes. A node's edges are raw int32 in ``bytes`` and ``bytearray``, not in ``array``: those are objects that
Python's garbage collector goes through, a million of them in a second during which nothing is answered.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

Node = int | str
"""A node: an int ≥ 0 (an id of the policy's own, as in ``Vectors`` and ``Text``) or a str."""

Numbers = npt.NDArray[np.int32]
_raw, _number = Struct("i").pack, Struct("i").unpack


def _edges(raw: bytearray) -> memoryview:
    """The numbers in a copy of a list: a view of the list itself would keep it from growing."""
    return memoryview(bytes(raw)).cast("i")


class Adjacency:
    """A directed weighted graph; nodes are numbered inside, numbers of vanished nodes are used again.

    Examples
    --------
    >>> graph = Adjacency()
    >>> graph.put(7, ["curie", "radium"], [1.0, 2.0])
    >>> graph.put(8, ["radium"], [1.0])
    >>> sorted(graph.source_ids("radium").tolist())
    [7, 8]
    >>> graph.remove(7)
    >>> "curie" in graph
    False
    """

    def __init__(self) -> None:
        self._number: dict[Node, int] = {}
        self._node: list[Node | None] = []
        self._free: list[int] = []
        self._ids = np.full(64, -1, np.int64)  # by node: an int node's own id, else -1
        self._degree = np.zeros(64, np.int32)
        self._out: list[bytes | None] = []  # by node: its edges, int32
        self._in: list[bytearray | None] = []
        self._source = array("i")  # by edge
        self._target = array("i")
        self._place = array("i")  # in the target's list
        self._weight = array("f")
        self._free_edges: list[int] = []

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, source: Node, targets: Sequence[Node], weights: Sequence[float]) -> None:
        """Set a source's edges, in place of those it had."""
        self.remove(source)
        if not targets:
            return
        start = self._made(source)
        out = array("i")
        for node, weight in zip(targets, weights, strict=True):
            end = self._made(node)
            if self._free_edges:
                edge = self._free_edges.pop()
            else:
                edge = len(self._source)
                self._source.append(0)
                self._target.append(0)
                self._place.append(0)
                self._weight.append(0.0)
            into = self._in[end]
            if into is None:
                into = self._in[end] = bytearray()
            self._source[edge], self._target[edge], self._weight[edge] = start, end, weight
            self._place[edge] = len(into) // 4
            into += _raw(edge)
            out.append(edge)
            self._degree[end] += 1
        self._out[start] = out.tobytes()
        self._degree[start] += len(out)

    def remove(self, source: Node) -> None:
        """Remove a source's edges; one without edges is no error."""
        start = self._number.get(source)
        raw = None if start is None else self._out[start]
        if start is None or raw is None:
            return
        self._out[start] = None
        out = memoryview(raw).cast("i")
        place = self._place
        for edge in out:
            end = self._target[edge]
            into = self._in[end]
            assert into is not None
            moved = into[-4:]
            del into[-4:]
            (last,) = _number(moved)
            if last != edge:
                place[last] = at = place[edge]
                into[4 * at : 4 * at + 4] = moved
            self._degree[end] -= 1
            if not into:
                self._in[end] = None
                self._drop_if_bare(end)
        self._free_edges.extend(out)
        self._degree[start] -= len(out)
        self._drop_if_bare(start)

    def _made(self, node: Node) -> int:
        number = self._number.get(node)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self._node[number] = node
        else:
            number = len(self._node)
            self._node.append(node)
            self._out.append(None)
            self._in.append(None)
            if number == len(self._ids):
                self._ids = np.concatenate([self._ids, np.full(number, -1, np.int64)])
                self._degree = np.concatenate([self._degree, np.zeros(number, np.int32)])
        self._ids[number] = node if isinstance(node, int) else -1
        self._number[node] = number
        return number

    def _drop_if_bare(self, number: int) -> None:
        node = self._node[number]
        if self._out[number] is None and self._in[number] is None and node is not None:
            del self._number[node]
            self._node[number] = None
            self._free.append(number)

    # -- reads --------------------------------------------------------------------------------------------------------
    def __contains__(self, node: Node) -> bool:
        return node in self._number

    def contains(self) -> Callable[[Node], bool]:
        """Return the test itself, for many questions in a row."""
        return self._number.__contains__

    def __len__(self) -> int:
        return len(self._number)

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return len(self._source) - len(self._free_edges)

    def nodes(self) -> Iterable[Node]:
        return self._number.keys()

    def in_degree(self, node: Node) -> int:
        """How many sources name the node: O(1)."""
        return self.in_degrees((node,))[0]

    def in_degrees(self, nodes: Sequence[Node]) -> list[int]:
        """Return :meth:`in_degree` of several nodes."""
        get, into = self._number.get, self._in
        numbers = [get(node) for node in nodes]
        return [0 if number is None or (raw := into[number]) is None else len(raw) // 4 for number in numbers]

    def targets(self, source: Node) -> tuple[list[Node], npt.NDArray[np.float32]]:
        """Return a source's targets in the order given, and the weights ``(n,) float32``."""
        number = self._number.get(source)
        raw = None if number is None else self._out[number]
        if not raw:
            return [], np.empty(0, np.float32)
        out = memoryview(raw).cast("i")
        weights = np.array([self._weight[edge] for edge in out], np.float32)
        return [self._named(self._target[edge]) for edge in out], weights

    def sources(self, target: Node) -> tuple[list[Node], npt.NDArray[np.float32]]:
        """Return the sources of a node, sorted (ints first), and the weights ``(n,) float32``."""
        number = self._number.get(target)
        into = None if number is None else self._in[number]
        if into is None:
            return [], np.empty(0, np.float32)
        source, weight, named = self._source, self._weight, self._named
        found = sorted([(type(node := named(source[edge])) is str, node, weight[edge]) for edge in _edges(into)])
        return [node for _, node, _ in found], np.array([weight for _, _, weight in found], np.float32)

    def source_ids(self, target: Node) -> npt.NDArray[np.int64]:
        """Return the sources that are ints, in no particular order: one gather, no loop."""
        edges = self._into(target)
        if not len(edges):
            return np.empty(0, np.int64)
        ids = self._ids[np.frombuffer(self._source, np.int32)[edges]]
        found: npt.NDArray[np.int64] = ids[ids >= 0]
        return found

    def source_ids_many(self, targets: Sequence[Node]) -> tuple[npt.NDArray[np.int64], Numbers, npt.NDArray[np.intp]]:
        """Return :meth:`source_ids` of several nodes behind one another, their numbers, and how many each has.

        A source keeps its number for as long as it has edges; later another may have it.
        """
        lists = [self._in[number] if (number := self._number.get(node)) is not None else None for node in targets]
        lengths = [0 if into is None else len(into) // 4 for into in lists]
        edges = np.frombuffer(b"".join(into for into in lists if into is not None), np.int32)
        numbers = np.frombuffer(self._source, np.int32)[edges]
        ids = self._ids[numbers]
        own = ids >= 0
        ends = np.concatenate([[0], np.cumsum(own)])[np.cumsum(lengths)]
        return ids[own], numbers[own], np.diff(ends, prepend=0)

    def target_numbers(self, sources: Iterable[Node]) -> tuple[Numbers, npt.NDArray[np.intp]]:
        """Return the numbers of the targets of several sources behind one another, and how many each source has."""
        get, out = self._number.get, self._out
        lists = [out[number] if (number := get(node)) is not None else None for node in sources]
        edges = np.frombuffer(b"".join(some for some in lists if some is not None), np.int32)
        counts = np.array([0 if some is None else len(some) // 4 for some in lists], np.intp)
        return np.frombuffer(self._target, np.int32)[edges], counts

    def numbers(self, nodes: Sequence[Node]) -> list[int]:
        """Return the numbers by which nodes go inside, good until the next write; unknown nodes are left out."""
        return [number for node in nodes if (number := self._number.get(node)) is not None]

    def count_ids(self, target: Node) -> int:
        """How many of the sources are ints: without arrays, as most nodes have few sources."""
        number = self._number.get(target)
        into = None if number is None else self._in[number]
        if into is None or len(into) > 128:
            return len(self.source_ids(target))
        ids, source = self._ids, self._source
        return sum(1 for edge in _edges(into) if ids[source[edge]] >= 0)

    def _into(self, target: Node) -> Numbers:
        number = self._number.get(target)
        into = None if number is None else self._in[number]
        return np.empty(0, np.int32) if into is None else np.frombuffer(bytes(into), np.int32)

    def _named(self, number: int) -> Node:
        node = self._node[number]
        assert node is not None
        return node

    def personalized_pagerank(
        self,
        seeds: Mapping[Node, float],
        *,
        damping: float = 0.5,
        epsilon: float = 1e-5,
        reached: bool = False,
        rounds: int = 64,
    ) -> dict[Node, float]:
        r"""Return the PageRank around some nodes, edges taken both ways, by local forward push.

        .. math:: p ← p + (1 − d) r_u e_u, \quad r_v ← r_v + d\, r_u w_{uv} / \sum_x w_{ux}

        for every u at once whose residual passes ``epsilon`` × its degree, until none does: work is bounded by
        :math:`1 / (ε (1 − d))` edges, whatever else is stored. The result is within ``epsilon × degree`` of the exact.

        Parameters
        ----------
        seeds : node → weight > 0, scaled to the sum 1; unknown nodes are left out.
        damping : the probability that the walk goes on (HippoRAG 2: .5).
        reached : also count, at each node, (1 − d) times the residual that is left there. So nodes are listed that the
            walk reaches and does not pass: those with many edges.

        References
        ----------
        Andersen, Chung, Lang, Local Graph Partitioning using PageRank Vectors, FOCS 2006, doi:10.1109/FOCS.2006.44;
        HippoRAG 2, arXiv:2502.14802.
        """
        there = {self._number[node]: weight for node, weight in seeds.items() if node in self._number and weight > 0}
        if not there:
            return {}
        size = len(self._node)
        residual, rank = np.zeros(size), np.zeros(size)
        starts = np.fromiter(there, np.intp, len(there))
        residual[starts] = np.fromiter(there.values(), np.float64, len(there)) / sum(there.values())
        source, target = np.frombuffer(self._source, np.int32), np.frombuffer(self._target, np.int32)
        weight = np.frombuffer(self._weight, np.float32)
        touched = starts
        for _ in range(rounds):
            active = touched[residual[touched] > epsilon * self._degree[touched]]
            if not len(active):
                break
            lists = [self._around(number) for number in active.tolist()]
            counts = np.fromiter(map(len, lists), np.intp, len(lists))
            edges = np.concatenate(lists)
            here = np.repeat(active, counts)
            there_ = np.where(target[edges] == here, source[edges], target[edges])
            firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            total = np.add.reduceat(weight[edges].astype(np.float64), firsts)
            push = residual[active]
            rank[active] += (1 - damping) * push
            residual[active] = 0.0
            np.add.at(residual, there_, np.repeat(damping * push / total, counts) * weight[edges])
            touched = np.unique(np.concatenate([touched, there_]))
        if reached:
            rank[touched] += (1 - damping) * residual[touched]
        found = touched[rank[touched] > 0]
        return {self._named(number): float(rank[number]) for number in found.tolist()}

    def _around(self, number: int) -> Numbers:
        """All edges at a node."""
        both = (self._out[number], self._in[number])
        return np.frombuffer(b"".join(edges for edges in both if edges is not None), np.int32)

    # -- checkpoint ---------------------------------------------------------------------------------------------------
    def rows(self) -> tuple[list[Node], dict[str, npt.NDArray[Any]]]:
        """Return the nodes, and as arrays the edges by their numbers: ``source``, ``target`` int32, ``weight``."""
        numbers = np.full(len(self._node), -1, np.int32)
        nodes: list[Node] = []
        for number, node in enumerate(self._node):
            if node is not None:
                numbers[number] = len(nodes)
                nodes.append(node)
        edges = np.frombuffer(b"".join(out for out in self._out if out is not None), np.int32)
        arrays = {
            "source": numbers[np.frombuffer(self._source, np.int32)[edges]],
            "target": numbers[np.frombuffer(self._target, np.int32)[edges]],
            "weight": np.frombuffer(self._weight, np.float32)[edges],
        }
        return nodes, arrays

    @classmethod
    def of(cls, nodes: Sequence[Node], arrays: Mapping[str, npt.NDArray[Any]]) -> Adjacency:
        """Make the graph of what :meth:`rows` returned, without a loop over edges."""
        graph = cls()
        source, target = arrays["source"].astype(np.int32), arrays["target"].astype(np.int32)
        count, size = len(source), len(nodes)
        graph._number = {node: number for number, node in enumerate(nodes)}
        graph._node = list(nodes)
        own = [node if isinstance(node, int) else -1 for node in nodes]
        spare = max(64, size)
        graph._ids = np.concatenate([np.array(own, np.int64), np.full(spare, -1, np.int64)])
        degree = np.bincount(source, minlength=size) + np.bincount(target, minlength=size)
        graph._degree = np.concatenate([degree.astype(np.int32), np.zeros(spare, np.int32)])
        graph._source, graph._target = array("i", source.tobytes()), array("i", target.tobytes())
        graph._weight = array("f", arrays["weight"].astype(np.float32).tobytes())
        place = np.empty(count, np.int32)
        both: tuple[tuple[Numbers, list[Any], type], ...] = (
            (source, graph._out, bytes),
            (target, graph._in, bytearray),
        )
        for numbers, lists, kind in both:
            order = np.argsort(numbers, kind="stable").astype(np.int32)
            counts = np.bincount(numbers, minlength=size)
            ends = np.cumsum(counts)
            place[order] = np.arange(count) - np.repeat(ends - counts, counts)  # the targets' come last, and stay
            raw = order.tobytes()
            for end, many in zip((4 * ends).tolist(), (4 * counts).tolist(), strict=True):
                lists.append(kind(raw[end - many : end]) if many else None)
        graph._place = array("i", place.tobytes())
        return graph
