"""The example plugin registers, decodes, folds and serves; the built-in plugin offers what it says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from streamfold.core import CandidateRequest, EventError, InvalidEvent, KafkaRecord
from streamfold.plugins import builtin

SOURCE = Path(__file__).parents[2] / "example_plugin/src/streamfold_dwell.py"


@pytest.fixture
def plugin() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("streamfold_dwell", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["streamfold_dwell"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["streamfold_dwell"]


def test_dwell_lists_items_by_mean_seconds(plugin: Any, bench: Any, make_event: Any) -> None:
    dwell = bench(plugin.Dwell())
    for n, (item, action, value) in enumerate(
        [("a", "view", 10), ("a", "view", 20), ("b", "view", 30), ("c", "click", 9)]
    ):
        dwell.send(make_event(n, "interaction.observed", user_id="u", item_id=item, action=action, value=value))
    assert dwell.server.candidates(CandidateRequest(n=9)) == [("b", 30.0), ("a", 15.0)]
    dwell.send(make_event(9, "item.deleted", item_id="b"))
    assert dwell.server.candidates(CandidateRequest(n=9)) == [("a", 15.0)]
    with pytest.raises(EventError, match="dwell time"):
        dwell.send(make_event(10, "interaction.observed", user_id="u", item_id="a", action="view", value=-1))


def test_pipe_lines_are_decoded_and_others_refused(plugin: Any) -> None:
    mapping: Any = None
    event = plugin.decode_pipe(KafkaRecord(topic="t", partition=0, offset=4, value=b"7|ann|12.5"), mapping)
    (kind,) = plugin.register_event_types()
    data = msgspec.json.decode(event.data, type=kind.data)
    assert (event.type, event.id, data.seconds) == (kind.name, "t/0/4", 12.5)
    assert [subject.kind for subject in kind.subjects(data)] == ["user", "item"]
    with pytest.raises(InvalidEvent, match=r"item\|user\|seconds"):
        plugin.decode_pipe(KafkaRecord(topic="t", partition=0, offset=5, value=b"7;ann"), mapping)


def test_the_built_in_plugin_offers_policies_and_backends() -> None:
    names = [policy.name for policy in builtin.register_policies()]
    assert len(set(names)) == len(names)
    assert {"graph_index", "vector_index", "trending", "activity", "ensemble", "residual_table"} <= set(names)
    offered = [(backend.kind, backend.name) for backend in builtin.register_backends()]
    assert offered == [
        ("encoder", "minilm"),
        ("encoder", "hashing"),
        ("chunker", "sentences"),
        ("extractor", "names"),
        ("extractor", "llm"),
        ("generator", "llm"),
        ("keywords", "llm"),
        ("reranker", "llm"),
        ("summarizer", "llm"),
    ]
