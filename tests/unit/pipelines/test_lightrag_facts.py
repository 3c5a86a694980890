"""Which chunks a fact of LightRAG goes to, and what is read of its graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamfold.pipelines.cli.lightrag_facts import Chunk, chunks_saying, read_facts

TEXT = "Marie Curie met Ida.\nRadium glows, said Curie.\n居里夫人研究镭。\nMarie  CURIE, radium: done."


def cut() -> list[Chunk]:
    chunks, start = [], 0
    for line in TEXT.splitlines(keepends=True):
        shown = {"chunk_id": f"d#1#{start}.2", "text": line, "start": start, "end": start + len(line)}
        chunks.append(Chunk.of("d#1", shown))
        start += len(line)
    return chunks


@pytest.mark.parametrize(
    ("names", "span", "lines"),
    [
        (("marie curie",), (0, len(TEXT)), [0, 3]),  # whatever the case and the spaces
        (("Marie Curie",), (0, 30), [0]),  # only where LightRAG's chunk lies
        (("Marie Curie",), None, [0, 3]),  # anywhere, where that is not known
        (("Rad",), (22, 50), [1]),  # no word: where most of LightRAG's chunk lies
        (("Rad",), None, []),
        (("居里",), (0, len(TEXT)), [2]),  # no spaces between words
        (("Radium", "Curie"), (0, len(TEXT)), [1, 3]),
        (("Radium", "Ida"), (0, len(TEXT)), [0]),  # never together: the first with one of them
        (("...",), (0, 25), [0]),
    ],
)
def test_a_fact_goes_to_the_chunks_that_hold_its_names(
    names: tuple[str, ...], span: tuple[int, int] | None, lines: list[int]
) -> None:
    chunks = cut()
    assert [chunks.index(one) for one in chunks_saying(names, chunks, [span])] == lines


def test_ids_of_chunks_give_their_hash() -> None:
    assert [one.hash for one in cut()] == ["0", "21", "47", "56"]


def test_a_graph_is_read_as_events_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "g.graphml"
    names = ("entity_id", "entity_type", "description", "source_id", "keywords", "weight")
    keys = "".join(f'<key id="d{i}" attr.name="{name}"/>' for i, name in enumerate(names))
    file.write_text(
        f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}<graph edgedefault="undirected">'
        '<node id="n0"><data key="d0">Radium</data><data key="d1">UNKNOWN</data><data key="d2">A.&lt;SEP&gt;B.</data>'
        '<data key="d3">c1&lt;SEP&gt;c2</data></node><node id="Ida"/><node id=" "/>'
        '<edge source="Ida" target="n0"><data key="d4">finds, x&lt;SEP&gt;y,</data><data key="d5">NaN</data></edge>'
        "</graph></graphml>"
    )
    listed = {"Radium": {"chunk_ids": ["c2", "c3"]}}
    radium, ida, found = read_facts(file, listed, {"Ida<SEP>Radium": {"chunk_ids": ["c9"]}})
    assert (radium.data, radium.sources) == ({"name": "Radium", "description": "A.\nB."}, ["c1", "c2", "c3"])
    assert ida.data == {"name": "Ida"}
    assert (found.names, found.data) == (
        ("Ida", "Radium"), {"source": "Ida", "target": "Radium", "keywords": ["finds", "x", "y"]},
    )  # fmt: skip
    assert "c9" in found.sources
