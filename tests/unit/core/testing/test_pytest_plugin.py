"""The fixtures that authors of plugins get, and the names of the kit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import streamfold.core.testing as kit
from streamfold.core import CandidateRequest
from streamfold.plugins.trending import Trending


def test_the_names_of_the_kit_are_sorted_and_there() -> None:
    assert kit.__all__ == sorted(kit.__all__, key=lambda name: (not name.isupper(), name))
    assert all(getattr(kit, name) is not None for name in kit.__all__)
    with pytest.raises(AttributeError, match="check_polcy"):
        kit.check_polcy  # noqa: B018  # the access is the test


def test_event_stream_makes_events_of_the_types_asked_for(event_stream: Any) -> None:
    events = event_stream(["item.upserted"], n=5, seed=3)
    assert [type_ for type_, _ in events] == ["item.upserted"] * 5


def test_folded_view_folds_and_shows_server_stores_and_skips(folded_view: Any) -> None:
    click = ("interaction.observed", {"user_id": "u", "item_id": "lamp", "action": "click"})
    folded = folded_view(Trending, [click])
    assert [item for item, _ in folded.server.candidates(CandidateRequest(n=5))] == ["lamp"]
    folded.send([("item.deleted", {"item_id": "lamp"})])
    assert len(folded["score_0"]) == 0
    assert folded.skipped == []


def test_folded_view_fails_when_the_policy_is_halted(folded_view: Any) -> None:
    from streamfold.core.testing.broken import Logarithm

    bad = ("interaction.observed", {"user_id": "u", "item_id": "lamp", "action": "rating", "value": 0.0})
    with pytest.raises(AssertionError, match="math domain error"):
        folded_view(Logarithm, [bad])


def test_loading_the_plugin_imports_neither_ledger_nor_web() -> None:
    heavy = "{'sqlalchemy', 'fastapi', 'faiss', 'torch', 'hypothesis', 'streamfold.core.testing.world'}"
    code = f"import sys; import streamfold.core.testing.pytest_plugin; assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)
