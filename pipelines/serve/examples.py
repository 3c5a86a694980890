"""Examples of requests and responses, shown in the OpenAPI document."""

from __future__ import annotations

from typing import Any

VERSION = {"position": 1042, "age_ms": 0, "policies": {"graph_index": "1"}, "degraded": []}
EVENT = {
    "specversion": "1.0",
    "id": "order-7-line-1",
    "source": "shop",
    "type": "interaction.observed",
    "time": "2026-01-31T12:00:00Z",
    "data": {"user_id": "u-1", "item_id": "lamp-9", "action": "purchase"},
}
ACCEPTED = {"position": 1042, "accepted": 1, "duplicates": 0, "rejected": 0, "visible": False, "results": []}
WRITTEN = {"event_id": "rest-5b0c", "position": 1042, "visible": True}
DATA: dict[tuple[str, str], Any] = {
    ("PUT", "document"): {
        "text": "The pump is started by the green lever.",
        "title": "Pump",
        "metadata": {"lang": "en"},
    },
    ("PATCH", "document"): {"title": "Pump, revised", "metadata": {"lang": None}},
    ("PUT", "item"): {"title": "Desk lamp", "categories": ["light"], "properties": {"price": 39.9}},
    ("PATCH", "item"): {"available": False},
    ("PUT", "user"): {"properties": {"country": "NO"}},
    ("PATCH", "user"): {"properties": {"country": None}},
}
_LOGGED = {
    "event": EVENT | {"subject": "u-1", "recordedtime": "2026-01-31T12:00:00.120000Z"},
    "position": 1042,
    "type": "interaction.observed",
    "recordedtime": "2026-01-31T12:00:00.120000Z",
    "retry_of": None,
    "effect": "normal",
}
EVENTS = {"items": [_LOGGED], "next_cursor": None}
TRACE = _LOGGED | {
    "policies": [
        {
            "policy": "trending@1",
            "label": "1-5d0ef1c2",
            "slot": "live",
            "state": "folded",
            "at": "2026-01-31T12:00:00.131000Z",
            "commit": 311,
            "visible": True,
            "error": None,
            "dead_letter_id": None,
        }
    ],
    "steps": [
        {"step": "happened", "policy": None, "at": "2026-01-31T12:00:00Z"},
        {"step": "logged", "policy": None, "at": "2026-01-31T12:00:00.120000Z"},
        {"step": "folded", "policy": "trending@1", "at": "2026-01-31T12:00:00.131000Z"},
        {"step": "visible", "policy": "trending@1", "at": None},
    ],
}
_STORED = {
    "document_id": "pump",
    "title": "Pump",
    "metadata": {"lang": "en"},
    "content_hash": "9f86d081884c7d65",
    "event_id": "rest-5b0c",
    "position": 1042,
    "updated_at": "2026-01-31T12:00:00.120000Z",
    "text_position": 1042,
}
_TEXT = "The pump is started by the green lever."
DOCUMENT = _STORED | {
    "text": _TEXT,
    "chunks": [{"chunk_id": "pump#0", "text": _TEXT, "start": 0, "end": 39}],
    "version": VERSION,
}
DOCUMENTS = {"items": [_STORED], "next_cursor": None, "version": VERSION}
QUERY = {
    "query": "How is the pump started?",
    "top_k": 3,
    "filter": {"field": "metadata.lang", "op": "eq", "value": "en"},
}
ANSWER = {
    "exposure_id": None,
    "chunks": [
        {
            "chunk_id": "pump#0",
            "document_id": "pump",
            "title": "Pump",
            "text": _TEXT,
            "start": 0,
            "end": 39,
            "score": 1.7,
            "sources": ["vector", "bm25"],
            "path": [],
            "url": None,
            "metadata": {"lang": "en"},
        }
    ],
    "entities": [],
    "relations": [],
    "answer": None,
    "timings_ms": {"wait": 0.1, "queue": 0.2, "retrieve": 4.1, "total": 4.6},
    "version": VERSION,
}
STREAM = """event: context
data: {"exposure_id": null, "chunks": [{"chunk_id": "pump#0", "document_id": "pump"}], "version": {"position": 1204}}

event: delta
data: {"text": "Turn the key [1]."}

event: done
data: {"answer": {"text": "Turn the key [1].", "citations": [{"chunk_id": "pump#0", "document_id": "pump"}]}}

"""
GRAPH = {
    "entities": [
        {
            "entity_id": "marie curie",
            "name": "Marie Curie",
            "type": None,
            "description": "Marie Curie met Lise Meitner in Paris.",
            "score": 3.0,
            "chunk_ids": ["radium#5d0e"],
        }
    ],
    "relations": [
        {
            "relation_id": "lise meitner|marie curie",
            "source": "Lise Meitner",
            "target": "Marie Curie",
            "keywords": ["paris"],
            "description": "Marie Curie met Lise Meitner in Paris.",
            "weight": 1.0,
            "valid_from": "2026-01-31T12:00:00.000000Z",
            "valid_to": None,
            "score": 1.0,
            "chunk_ids": ["radium#5d0e"],
        }
    ],
    "truncated": False,
    "merge_candidates": [{"entity_id": "m curie", "reason": "short name", "score": 0.8}],
    "version": VERSION,
}
ENTITIES = {"items": GRAPH["entities"], "next_cursor": None, "version": VERSION}
RELATIONS = {"items": GRAPH["relations"], "next_cursor": None, "version": VERSION}
TRENDING = {"items": [{"item_id": "lamp-9", "rank": 1, "score": 3.94}], "version": VERSION}
RECOMMEND = {"user_id": "u-1", "n": 2, "exclude_seen": ["purchase"], "explain": True}
_RECOMMENDED = {"item_id": "lamp-9", "rank": 1, "score": 0.81, "propensity": None, "sources": ["trending"]}
_EXPLAINED = {
    "base_score": 0.78,
    "correction": 0.03,
    "features": [{"name": "item", "value": 1.2, "contribution": 0.9}],
}
RECOMMENDED = {
    "exposure_id": "5f3c9e0e4a7b4c0d9a51f6b7f0f1c2d3",
    "items": [_RECOMMENDED | {"explain": _EXPLAINED}],
    "fallback": None,
    "version": VERSION,
}
RANK = {"item_ids": ["lamp-9", "desk-2"], "user_id": "u-1"}
RANKED: dict[str, Any] = {
    "exposure_id": "5f3c9e0e4a7b4c0d9a51f6b7f0f1c2d3",
    "items": [
        {"item_id": "lamp-9", "rank": 1, "score": 0.81, "known": True, "propensity": None, "sources": []},
        {"item_id": "desk-2", "rank": 2, "score": 0.42, "known": False, "propensity": None, "sources": []},
    ],
    "fallback": None,
    "version": VERSION,
}
CLASSIFY = {"head": "topic", "targets": [{"text": "the new lens is out of focus"}], "top_k": 2, "explain": True}
CLASSIFIED: dict[str, Any] = {
    "exposure_id": "5f3c9e0e4a7b4c0d9a51f6b7f0f1c2d3",
    "predictions": [
        {
            "labels": [
                {"label": "camera", "score": 0.91, "name": "Cameras and lenses"},
                {"label": "phone", "score": 0.07},
            ],
            "unknown": 0.12,
            "explain": {
                "read_out": "ridge",
                "nearest": "camera",
                "distance": 0.61,
                "usual_distance": 0.74,
                "temperature": 0.08,
                "weights": {"camera": 41.0, "phone": 17.0},
            },
        }
    ],
    "version": VERSION,
}
SIMILAR = {"items": [{"item_id": "desk-2", "rank": 1, "score": 0.03, "sources": ["cooccurrence"]}], "version": VERSION}
ITEM = {
    "item_id": "lamp-9",
    "title": "Desk lamp",
    "categories": ["light"],
    "content_hash": "9f86d081884c7d65",
    "event_id": "rest-5b0c",
    "position": 1042,
    "updated_at": "2026-01-31T12:00:00.120000Z",
    "version": VERSION,
}
ITEMS = {"items": [ITEM], "next_cursor": None, "version": VERSION}
USER = {
    "user_id": "u-1",
    "properties": {"country": "NO"},
    "content_hash": "9f86d081884c7d65",
    "event_id": "rest-5b0c",
    "position": 1042,
    "updated_at": "2026-01-31T12:00:00.120000Z",
    "version": VERSION,
}
USERS = {"items": [USER], "next_cursor": None, "version": VERSION}
QUALITY = {
    "series": [
        {
            "at": "2026-01-31T12:00:00.000000Z",
            "events": 1200,
            "auc": 0.78,
            "user_auc": 0.72,
            "logloss": 0.56,
            "ndcg_at_10": 0.31,
            "calibration_error": 0.012,
            "catalogue_ndcg_at_10": 0.062,
            "ranked": 11,
            "coverage": 0.034,
            "lists": 40,
        }
    ],
    "total": {
        "at": "2026-01-31T12:00:00.000000Z",
        "events": 48_000,
        "auc": 0.781,
        "user_auc": 0.719,
        "logloss": 0.563,
        "ndcg_at_10": 0.3,
        "calibration_error": 0.009,
        "catalogue_ndcg_at_10": 0.058,
        "ranked": 820,
        "coverage": 0.31,
        "lists": 2710,
    },
    "slice": "all",
    "ranking": {"positives": 820, "ndcg_at_10": 0.058, "lists": 2710, "items": 9400, "coverage": 0.31, "why": None},
    "gate": [
        {
            "rule": "not_worse",
            "passed": True,
            "value": -0.002,
            "limit": 0.001,
            "detail": "pass, better: 812 users, mean difference of log loss in -0.0061…-0.0020",
            "undecided": False,
        }
    ],
    "arms": [
        {
            "experiment": "5f0c3a9be2d14a77",
            "measure": "liked",
            "since": "2026-01-31T12:00:00.000000Z",
            "share": 0.1,
            "live": {
                "users": 9020,
                "counted": 8210,
                "exposures": 21000,
                "liked": 2730,
                "rate": 0.12,
                "lower": 0.108,
                "upper": 0.133,
                "labelled": None,
                "logloss": None,
            },
            "candidate": {
                "users": 1003,
                "counted": 912,
                "exposures": 2350,
                "liked": 480,
                "rate": 0.19,
                "lower": 0.155,
                "upper": 0.226,
                "labelled": None,
                "logloss": None,
            },
            "difference": 0.07,
            "lower": 0.022,
            "upper": 0.118,
            "verdict": "better",
            "logloss": None,
        }
    ],
    "version": VERSION,
}
HEALTH = {"checks": [{"name": "lag", "ok": True, "detail": "0 events (limit 200000)"}]}
JOB_STARTED = {"job_id": "0f3a"}
GIVEN: dict[str, dict[str, Any]] = {"skip": {"event_id": "order-7-line-1"}, "split": {"share": 0.1}}
"""What operations on a policy take beside a reason, and what they say beside the job."""
DONE: dict[str, dict[str, Any]] = {
    "promote": {"position": 1042},
    "skip": {"position": 1042},
    "split": {"group": "trending@1-5d0ef1c2", "share": 0.1, "experiment": "5f0c3a9be2d14a77"},
}
JOB = {
    "job_id": "0f3a",
    "kind": "verify",
    "state": "done",
    "progress": 1.0,
    "eta_s": None,
    "result": {"equal": True, "events": 1042, "watermark": 1042, "differences": []},
    "error": None,
}
ERASURE = {
    "erasure_id": "1042",
    "position": 1042,
    "kind": "user",
    "state": "complete",
    "requested_at": "2026-01-31T12:00:00.120000Z",
    "hidden_at": "2026-01-31T12:00:00.161000Z",
    "completed_at": "2026-01-31T12:00:03.480000Z",
    "policies": [
        {
            "policy": "trending@1",
            "slot": "live",
            "method": "rebuild",
            "state": "done",
            "removed": 12,
            "max_abs_delta": 0.0,
            "delta": {
                "relative": 0.0,
                "column": None,
                "only_live": 0,
                "only_afresh": 0,
                "unequal": 0,
                "position": 1050,
                "at": "2026-01-31T12:00:09.120000Z",
            },
            "not_compared": None,
        }
    ],
    "stores": [{"store": "trending@1-6ba125bf/trending@1/score_0", "scanned": 4096, "residue": 0}],
    "looked_for": {"id": True, "texts": 0},
    "removed": {"events": 12, "results": 0, "dead_letters": 0, "archive_files": 0},
    "not_covered": ["backups that were made before"],
}
RETENTION = {
    "keep_s": 7_776_000.0,
    "compact": True,
    "compact_after_s": 86_400.0,
    "archive": True,
    "archive_root": "",
    "dedup_window_s": 2_592_000.0,
    "every_s": 86_400.0,
    "ran_at": "2026-01-31T12:00:00.120000Z",
    "report": {
        "position": 1042,
        "expired_upto": 400,
        "expired": 120,
        "compacted": 30,
        "files": ["00000000000000000001-7.parquet"],
        "ids": 410,
        "held_by": [],
        "waits_for": "",
    },
    "left_upto": 400,
    "archived": {"folder": "/data/archive/5b1c/default", "files": 1, "events": 150, "bytes": 20_480, "missing": []},
    "gone": 0,
}
LETTER = {
    "dead_letter_id": 3,
    "stage": "fold",
    "policy": "graph_index@1",
    "position": 977,
    "code": "too-many-chunks",
    "detail": "the document has 20000 chunks",
    "attempts": 1,
    "at": "2026-01-31T12:00:00.120000Z",
    "source": "shop",
    "offset": None,
    "event_id": "doc-9",
}
STATUS = {
    "position": 1042,
    "intakes": [
        {
            "name": "http",
            "kind": "http",
            "offsets": {},
            "lag_events": 0,
            "rate_per_s": 12.5,
            "duplicates": 0,
            "rejected": 0,
        }
    ],
    "policies": [
        {
            "policy": "trending",
            "version": "1",
            "label": "1-5d0ef1c2",
            "slot": "live",
            "state": "running",
            "watermark": 1042,
            "lag_events": 0,
            "lag_s": 0.0,
            "owner": "5be1",
            "last_error": None,
            "halt": None,
            "rate": None,
            "replaces": None,
            "share": None,
            "experiment": None,
            "answering": None,
            "takeover": None,
            "retires_at": None,
            "state_bytes": 4096,
            "skips": 0,
            "rebuildable_from": 0,
            "rebuild": "exact",
            "missing_on": [],
        }
    ],
    "view": {"position": 1042, "lag_ms": 0},
    "dead_letters": 0,
}
ADD = {
    "name": "trending",
    "config": {"half_lives_s": [3600.0]},
    "from": "start",
    "rate": 2000,
    "reason": "attention of the last hour, not of the day",
}
ADDED = {
    "job_id": "0f3a",
    "policy": "trending@1-5d0ef1c2",
    "estimate": {
        "events": 800_000,
        "positions": 1_000_000,
        "seconds": 400.0,
        "events_per_s": 2000.0,
        "state_bytes": 64_000_000,
        "sampled_events": 100,
        "note": "",
    },
}
AUDIT = {
    "items": [
        {
            "audit_id": 7,
            "at": "2026-01-31T12:00:00.120000Z",
            "actor": "key:5b0c1d2e",
            "action": "promote",
            "target": "trending@1-5d0ef1c2",
            "reason": "better on the click log of January",
        }
    ],
    "next_cursor": None,
}
KEY = {
    "key_id": "6f1c0a9be24d",
    "name": "shop",
    "workspace": "default",
    "scopes": ["ingest"],
    "created_at": "2026-01-31T12:00:00.120000Z",
    "created_by": "local",
    "revoked_at": None,
}
NEW_KEY = KEY | {"key": "sf_6f1c0a9be24d_…"}
WORKSPACE_BODY = {"quotas": {"events_per_s": 500.0, "bytes": 1_000_000_000, "queries_per_s": 50.0}}
