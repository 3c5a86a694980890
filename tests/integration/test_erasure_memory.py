"""What was erased is nowhere in the memory of the process either: no cache, no kept row, nothing that is held."""

from __future__ import annotations

import gc
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node
from tests.waiting import ended_erasure, exposure, until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving

sys.path.pop(0)

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {},
    "newest": {},
    "activity": {},
    "cooccurrence": {},
    "item_vectors": {},
    "graph_walk": {},
    "count_stack": {},
    "factorization": {},
    "implicit_ftrl": {},
    "deepfm": {},
    "ensemble": {"members": ["count_stack", "factorization", "implicit_ftrl", "deepfm"]},
    "residual_table": {"base": "ensemble"},
    "diag_linucb": {},
    "quality": {"ranker": "ensemble", "rank_budget": 10.0},
    "vector_index": {},
    "graph_index": {},
    "label_statistics": {},
    "kalman_head": {},
    "gradient_head": {},
    "head_quality": {"head": "gradient_head"},
    "corrections": {},
}


def name(*, of: str) -> str:
    """Made each time: a name that a variable of this test holds would be found."""
    return "".join(reversed(f"{of}-yzzyx"))


def contents(one: Any) -> Iterator[Any]:
    """What an object holds; structs that the collector does not follow are looked into by their fields."""
    if issubclass(type(one), msgspec.Struct):  # what some objects say of their class warns
        yield from (getattr(one, field, None) for field in one.__struct_fields__)
    elif type(one) is np.ndarray and one.dtype == object:
        yield from one.ravel().tolist()
    else:
        yield from gc.get_referents(one)


def holders(needle: str) -> list[str]:
    """Who in this process holds a string or bytes that a needle is in. O(objects)."""
    packed, mine, seen = needle.encode(), sys._getframe(), set[int]()
    found: list[str] = []
    for holder in gc.get_objects():
        if holder is mine or holder is found:
            continue
        left = list(contents(holder))
        while left:
            one = left.pop()
            if issubclass(type(one), str | bytes | bytearray):
                if (
                    one is not needle
                    and one is not packed
                    and (needle if issubclass(type(one), str) else packed) in one
                ):
                    found.append(f"{type(holder).__qualname__}: {str(holder)[:200]} … {str(one)[:100]!r}")
            elif not gc.is_tracked(one) and id(one) not in seen:
                seen.add(id(one))
                left.extend(contents(one))
    return found


def fill(client: httpx.Client) -> None:
    """Tell of a user, an item and a document, and ask about them in every way there is."""
    user, item, document = name(of="user"), name(of="item"), name(of="document")
    for n in range(4):
        client.put(f"/v1/items/i{n}", json={"title": f"A lamp of type {n}", "categories": ["lamps"]})
    client.put(f"/v1/items/{item}", json={"title": f"A {item} lantern", "categories": ["lamps"]})
    client.put(f"/v1/users/{user}", json={"metadata": {"town": user}})
    text = f"Mrs. {document} Plugh lives near the Colossal Cave. She feeds a fox."
    client.put(f"/v1/documents/{document}", json={"title": document, "text": text})
    at = 0

    def event(type_: str, data: dict[str, Any]) -> dict[str, Any]:
        nonlocal at
        at += 1
        return {"specversion": "1.0", "id": f"e{at}", "source": "/t", "type": type_, "data": data}

    events = []
    for n in range(60):
        who, what = (user, f"u{n % 7}")[n % 3 > 0], (item, f"i{n % 4}")[n % 4 > 0]
        events.append(
            event("interaction.observed", {"user_id": who, "item_id": what, "action": ("like", "view")[n % 2]})
        )
    for n, target in enumerate([{"item_id": item}, {"document_id": document}, {"text": text}] * 3):
        events.append(event("label.observed", {"head": "h", "target": target, "label": f"c{n % 2}"}))
    answer = client.post("/v1/events", json=events)
    assert answer.status_code == 202, answer.text
    until(lambda: (shown := client.get("/v1/status").json())["view"]["position"] >= shown["position"])
    for path, body in [
        ("recommend", {"user_id": user, "n": 5}),
        ("rank", {"user_id": user, "item_ids": [item, "i1"], "explain": True}),
        ("query", {"query": "Who lives near the Colossal Cave?"}),
        ("classify", {"head": "h", "targets": [{"item_id": item}, {"document_id": document}, {"text": text}]}),
    ]:
        answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, (path, answer.text)
        if shown := answer.json().get("exposure_id"):
            exposure(client, shown)  # logged later than the erasure it would be of a user who came back
    assert client.get(f"/v1/similar/{item}").status_code == 200
    client.post(
        "/v1/events?wait=visible",
        json=[event("interaction.observed", {"user_id": "u1", "item_id": "i1", "action": "view"})],
    )


def erase(client: httpx.Client) -> None:
    for kind in ("user", "item", "document"):
        answer = client.post("/v1/erasures", json={f"{kind}_id": name(of=kind)})
        assert answer.status_code == 202, answer.text
        report = ended_erasure(client, answer.json()["erasure_id"])
        assert report["state"] == "complete", report


def test_nothing_in_memory_names_what_was_erased(tmp_path: Path) -> None:
    settings = Settings(backends=BACKENDS, data=tmp_path, policies=POLICIES)
    with serving(settings, Node(settings)) as client:
        fill(client)
        assert holders(name(of="user")), "the search finds what is there"
        erase(client)
        urllib.parse.clear_cache()  # the client's addresses
        left = {}
        for _ in range(100):  # every process empties its caches when it next looks
            gc.collect()
            left = {kind: found for kind in ("user", "item", "document") if (found := holders(name(of=kind)))}
            if not left:
                break
            time.sleep(0.1)
        assert not left
