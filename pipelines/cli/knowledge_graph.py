"""A knowledge graph from a file (GraphML, JSON lines), checked as a whole, and told as documents."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamfold.pipelines.cli.state import FAILED, USAGE, CliError

_SHOWN = 5
_NAMES = ("name", "label", "title", "entity_id")
_TOLD = ("description", "text")
_SAID = ("keywords", "relation", "type", "label", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Something with a name."""

    id: str
    name: str
    type: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """That something has to do with something else; ``at``: where the file says so."""

    source: str
    target: str
    keywords: str = ""
    description: str = ""
    at: str = ""


@dataclass(slots=True)
class KnowledgeGraph:
    """Nodes by id, and edges between them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def documents(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Tell each node as a document: what it is, and a sentence for each relation that starts there."""
        starting: defaultdict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            starting[edge.source].append(edge)
        for node in self.nodes.values():
            told = [node.description or f"{node.name}."]
            told += [self._sentence(edge) for edge in starting[node.id]]
            yield {
                "document_id": prefix + node.id,
                "title": node.name,
                "text": "\n".join(told),
                "metadata": {"entity_type": node.type} if node.type else None,
            }

    def _sentence(self, edge: Edge) -> str:
        one, other = self.nodes[edge.source].name, self.nodes[edge.target].name
        said = edge.description.strip()
        if one.lower() in said.lower() and other.lower() in said.lower():
            return said
        keywords = edge.keywords.replace(",", ", ").replace("_", " ").strip() or "is related to"
        return f"{one} {keywords} {other}. {said}".strip()


def read_graph(source: Path) -> KnowledgeGraph:
    """Read a graph; raises ``CliError`` where anything is wrong with it."""
    try:
        if source.is_dir():
            return _jsonl([source / "entities.jsonl", source / "relations.jsonl"])
        if source.suffix.lower() in (".jsonl", ".ndjson"):
            return _jsonl([source])
        if source.suffix.lower() in (".graphml", ".xml"):
            return _graphml(source)
    except OSError as error:
        raise CliError(f"{error.filename or source}: {error.strerror or error}", USAGE) from error
    raise CliError(f"{source}: name a .graphml or a .jsonl file, or a folder of `streamfold export`", USAGE)


# -- JSON lines --------------------------------------------------------------------------------------------------------
def _jsonl(files: list[Path]) -> KnowledgeGraph:
    graph = KnowledgeGraph()
    by_name: dict[str, str] = {}
    edges: list[tuple[str, str, Mapping[str, Any]]] = []
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            at = f"{file.name}, line {number}"
            if not line.strip():
                continue
            row = _row(line, at)
            source, target = (row.get(f"{end}_id") or row.get(end) for end in ("source", "target"))
            if source is not None or target is not None:
                edges.append((_text(source, "source", at), _text(target, "target", at), row | {"at": at}))
                continue
            id_ = _text(row.get("entity_id") or row.get("id") or row.get("name"), "name", at)
            if id_ in graph.nodes:
                raise _wrong(at, f"node {id_!r} is there twice")
            node = _node(id_, row)
            graph.nodes[id_] = node
            by_name.setdefault(node.name, id_)
    for source, target, values in edges:
        one, other = (end if end in graph.nodes else by_name.get(end, end) for end in (source, target))
        graph.edges.append(_edge(one, other, values))
    return _checked(graph)


def _row(line: bytes, at: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong(at, f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _wrong(at, "not a JSON object")
    return row


def _text(value: Any, what: str, at: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(at, f"{what} is missing, or no text")
    return value


# -- GraphML -----------------------------------------------------------------------------------------------------------
def _graphml(file: Path) -> KnowledgeGraph:
    from xml.etree.ElementTree import ParseError, iterparse

    import networkx as nx

    try:
        declared = {e.get("id") for _, e in iterparse(file) if e.tag.rpartition("}")[2] == "node"}
        found = nx.read_graphml(file)
    except (ParseError, nx.NetworkXException, KeyError, ValueError, TypeError) as error:
        raise _wrong(file.name, f"not valid GraphML: {error}") from error
    graph = KnowledgeGraph()
    for id_, values in found.nodes(data=True):
        if id_ in declared:  # networkx makes up the ends of an edge that are not there
            graph.nodes[str(id_)] = _node(str(id_), values)
    for source, target, values in found.edges(data=True):
        graph.edges.append(_edge(str(source), str(target), dict(values) | {"at": file.name}))
    return _checked(graph)


# -- both --------------------------------------------------------------------------------------------------------------
def _node(id_: str, values: Mapping[str, Any]) -> Node:
    return Node(
        id=id_,
        name=_first(values, _NAMES) or id_,
        type=_first(values, ("entity_type", "type")),
        description=_first(values, _TOLD),
    )


def _edge(source: str, target: str, values: Mapping[str, Any]) -> Edge:
    keywords = values.get("keywords")
    joined = ",".join(map(str, keywords)) if isinstance(keywords, list) else _first(values, _SAID)
    described = _first(values, _TOLD)
    return Edge(source=source, target=target, keywords=joined, description=described, at=str(values.get("at", "")))


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first value that is there; LightRAG joins several with ``<SEP>``."""
    return next((str(values[name]).replace("<SEP>", "\n").strip() for name in names if values.get(name)), "")


def _checked(graph: KnowledgeGraph) -> KnowledgeGraph:
    """Refuse a graph without nodes, and one with an edge that leads nowhere."""
    if not graph.nodes:
        raise CliError("the graph has no nodes; nothing was sent", FAILED)
    dangling = [
        f"{edge.at}: the relation {edge.source!r} → {edge.target!r} leads to {end!r}, which is no node"
        for edge in graph.edges
        for end in dict.fromkeys((edge.source, edge.target))
        if end not in graph.nodes
    ]
    if dangling:
        more = f"\n… and {len(dangling) - _SHOWN} more" if len(dangling) > _SHOWN else ""
        raise CliError("\n".join(dangling[:_SHOWN]) + more + "\nnothing was sent", FAILED)
    return graph


def _wrong(at: str, detail: str) -> CliError:
    return CliError(f"{at}: {detail}; nothing was sent", FAILED)
