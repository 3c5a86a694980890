"""A source's edges come and go as a whole, in compact lists, and PageRank around some nodes is the real one."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core.errors import StoreError
from streamfold.core.stores import Graph, LiveGraph, open_store
from streamfold.core.stores.graph import Adjacency, Node

OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 9) | st.sampled_from("abc"), st.lists(st.sampled_from("abcdexyz"), max_size=5, unique=True)
    ),
    max_size=40,
)


def held(graph: Adjacency) -> dict[Node, dict[Node, float]]:
    """All edges, as the reads show them."""
    rows = {}
    for node in graph.nodes():
        ends, weights = graph.targets(node)
        if ends:
            rows[node] = dict(zip(ends, weights.tolist(), strict=True))
    return rows


@settings(deadline=None)
@given(OPERATIONS)
def test_edges_are_those_that_each_source_was_given_last(operations: list[tuple[Node, list[str]]]) -> None:
    graph, model = Adjacency(), dict[Node, dict[Node, float]]()
    for number, (source, targets) in enumerate(operations):
        weights = [1.0 + (number + i) % 3 for i in range(len(targets))]
        graph.put(source, targets, weights)
        model.pop(source, None)
        if targets:
            model[source] = dict(zip(targets, weights, strict=True))
    loaded = Adjacency.of(*graph.rows())
    for one in (graph, loaded):
        assert held(one) == model
        assert one.edges == sum(map(len, model.values()))
        nodes = {*model, *(target for row in model.values() for target in row)}
        assert set(one.nodes()) == nodes
        for node in "abcdexyz":
            named = [source for source, row in model.items() if node in row]
            assert one.in_degree(node) == len(named)
            sources, weights = one.sources(node)
            assert dict(zip(sources, weights.tolist(), strict=True)) == {s: model[s][node] for s in named}
            assert sorted(one.source_ids(node).tolist()) == sorted(s for s in named if isinstance(s, int))
        asked: list[Node] = [*"abcdexyz", "unknown", *"abc"]
        assert one.in_degrees(asked) == [one.in_degree(node) for node in asked]
        assert list(map(one.contains(), asked)) == [node in one for node in asked]
        ids, numbers, counts = one.source_ids_many(asked)
        assert [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] == [
            one.source_ids(node).tolist() for node in asked
        ]
        assert len(set(zip(ids.tolist(), numbers.tolist(), strict=True))) == len(set(ids.tolist()))
        asked = [*model, "unknown"]
        ends, counts = one.target_numbers(asked)
        for source, part in zip(asked, np.split(ends, np.cumsum(counts)[:-1]), strict=True):
            assert part.tolist() == one.numbers(one.targets(source)[0])
        assert len(set(one.numbers([*nodes]))) == len(nodes)
        assert one.numbers(["unknown"]) == []
    loaded.put("later", ["a"], [1.0])  # what was loaded takes writes
    loaded.remove("later")
    assert held(loaded) == model


def test_numbers_and_edges_are_used_again() -> None:
    graph = Adjacency()
    for round_ in range(200):
        graph.put(round_, [f"name {round_}", "hub"], [1.0, 1.0])
        if round_ >= 3:
            graph.remove(round_ - 3)
    assert (len(graph), graph.edges) == (7, 6)
    assert len(graph._node) < 16
    assert len(graph._source) < 12


def test_pagerank_by_push_is_the_personalised_pagerank() -> None:
    rng = np.random.default_rng(3)
    graph, known = Adjacency(), nx.Graph()
    for source in range(60):
        targets = [f"t{t}" for t in rng.choice(40, size=4, replace=False)]
        weights = rng.integers(1, 4, 4).astype(float).tolist()
        graph.put(source, targets, weights)
        known.add_weighted_edges_from((source, t, w) for t, w in zip(targets, weights, strict=True))
    seeds: dict[Node, float] = {3: 2.0, "t5": 1.0, "unknown": 9.0}
    found = graph.personalized_pagerank(seeds, damping=0.5, epsilon=1e-9)
    exact = nx.pagerank(known, alpha=0.5, personalization={3: 2.0, "t5": 1.0}, weight="weight", tol=1e-12)
    assert max(abs(found.get(node, 0.0) - rank) for node, rank in exact.items()) < 1e-6
    assert graph.personalized_pagerank({"unknown": 1.0}) == {}
    passed = graph.personalized_pagerank(seeds, epsilon=1e-3)
    reached = graph.personalized_pagerank(seeds, epsilon=1e-3, reached=True)
    assert set(passed) < set(reached)
    assert all(passed.get(node, 0.0) <= rank <= exact[node] + 1e-12 for node, rank in reached.items())


def test_a_coarse_push_looks_at_what_is_near_alone() -> None:
    graph = Adjacency()
    for source in range(5_000):
        graph.put(source, [f"n{source}", f"n{source + 1}"], [1.0, 1.0])
    near = graph.personalized_pagerank({0: 1.0}, epsilon=1e-4)
    assert 5 < len(near) < 60
    assert max(near, key=lambda node: near[node]) == 0


def open_graph(folder: Path) -> LiveGraph:
    store = open_store(Graph("g"), folder=folder, side="view")
    assert isinstance(store, LiveGraph)
    return store


def test_writes_are_seen_after_the_event_and_undone_without_a_trace(tmp_path: Path) -> None:
    graph = open_graph(tmp_path)
    graph.begin()
    graph.put(1, ["a", "b"])
    assert "a" not in graph
    graph.keep()
    graph.begin()
    graph.put(1, ["c"])
    graph.delete(2)
    graph.undo()
    assert graph.targets(1)[0] == ["a", "b"]
    graph.begin()
    graph.put(1, [])
    graph.keep()
    assert (len(graph), "a" in graph) == (0, False)


def test_a_subgraph_is_a_networkx_graph_of_what_is_near(tmp_path: Path) -> None:
    graph = open_graph(tmp_path)
    graph.begin()
    for source in range(5):
        graph.put(source, [f"n{source}", f"n{source + 1}"], [1.0, 2.0])
    graph.keep()
    near = graph.subgraph(["n1"], depth=2)
    assert set(near) == {"n1", 0, 1, "n0", "n2"}
    assert near.edges[0, "n1"]["weight"] == 2.0
    assert len(graph.subgraph(["n1"], depth=9, limit=4)) == 4


@pytest.mark.parametrize(
    ("source", "targets", "weights", "says"),
    [
        (-1, ["a"], None, "node -1 is neither"),
        (1.5, ["a"], None, "node 1.5 is neither"),
        (True, ["a"], None, "node True is neither"),
        (1, ["a", "a"], None, "comes twice"),
        (1, ["a"], [1.0, 2.0], "1 targets with 2 weights"),
        (1, ["a"], [0.0], "weight 0.0"),
        (1, ["a"], [float("nan")], "weight nan"),
    ],
)
def test_bad_edges_are_refused(
    tmp_path: Path, source: Node, targets: list[Node], weights: list[float], says: str
) -> None:
    graph = open_graph(tmp_path)
    with pytest.raises(StoreError, match=says):
        graph.put(source, targets, weights)
    assert len(graph) == 0
