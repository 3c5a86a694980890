"""Write docs/reference/ from the code: ``python docs/generate_reference.py [--check]``.

Each page is made from what the program itself uses (settings classes, event types, hook specifications, endpoints,
metrics, commands), so that it cannot say something else; tests/docs holds the files equal to what this makes.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from streamfold.core.events import EventTypes, builtin_types
from streamfold.core.hooks import Hooks
from streamfold.core.settings import KafkaSettings, Settings, TopicSettings

REFERENCE = Path(__file__).parent / "reference"
_MADE = "<!-- Made by docs/generate_reference.py from the code. Change the code, then run it again. -->\n"

_MEANINGS = {
    "ledger": "Where the ledger is.",
    "broker": "The Celery broker of the distributed shape.",
    "kafka": "The Kafka intake.",
    "serve": "The REST endpoint.",
    "quotas": "What each workspace may use that was not given quotas of its own (`PUT /v1/workspaces/NAME`); unset: no "
    "limit.",
    "fold": "How folds run.",
    "retention": "How long events stay in the log; by default for ever. See [keep the log small]"
    "(../how-to/keep-the-log-small.md).",
    "vectors": "How views search vectors; see [vectors](../explanation/vectors.md).",
    "limits": "Request and event limits.",
    "log": "Structured logs on stderr.",
    "kafka.bootstrap": "Servers, `host:port`, several separated by commas. Empty: no Kafka intake.",
    "kafka.topics": "A table per topic, see below.",
    "kafka.group": "Consumer group under which offsets are committed for lag monitors; the ledger decides.",
    "kafka.poll_records": "Most records of one poll.",
    "on_change": "What happens when a declared policy changed: `replace`: the new instance takes over when caught up "
    "and, where its scores are measured, the gate lets it pass; `replace-ungated`: without asking the gate; `manual`: "
    "it stays a shadow until `policies promote`. See [change a policy](../how-to/change-a-policy.md).",
    "kafka.topics.NAME.options": "Of the decoder: for `json` the mapping (`type`, `id`, `source`, `time`, `data`), "
    "for `debezium` its `tables`.",
    "kafka.topics.NAME.workspace": "The workspace that the topic's events go to.",
    "kafka.topics.NAME.decoder": "`cloudevents`, `json`, `debezium`, or one of a plugin.",
    "kafka.topics.NAME.source": "Source of events that bring none. Empty: `kafka:TOPIC`.",
    "kafka.topics.NAME.allow_user_erasure": "A null value of a topic of kind `user` erases the user, for good.",
    "serve.host": "Address to bind. Anything but loopback needs keys.",
    "serve.port": "Port to bind; 0: any free one, named on stderr.",
    "serve.keys": "API keys, `[[serve.keys]]`, see below.",
    "serve.keys.N.sha256": "SHA-256 of the key, 64 hex digits.",
    "serve.keys.N.workspace": "The workspace that the key belongs to.",
    "serve.keys.N.scopes": "What the key may do; `operator`: everything, in the workspace that `X-Workspace` names.",
    "rules.N.name": "What it did is kept under its name; letters, digits, `_`, `-`.",
    "serve.max_body_bytes": "Longest request body; past it 413 `too-large`.",
    "serve.query_threads": "Threads that answer reads.",
    "fold.turn_ms": "A turn of one group ends after this time, so that groups share a worker.",
    "fold.batch_events": "Most events of one commit.",
    "fold.lease_s": "How long a group's lease lasts without renewal: after a crash another worker waits this long.",
    "fold.sweep_s": "How often lag is looked for without a wake-up.",
    "fold.checkpoint_min_bytes": "A checkpoint is written when the feed since the last is longer than this and than "
    "the state.",
    "fold.prepare_batch": "Most events of one prepare call.",
    "fold.prepare_timeout_s": "An attempt that itself runs longer, three times, skips the event.",
    "fold.view_poll_ms": "How often a view looks for commits of other processes.",
    "limits.max_event_bytes": "Longest event.",
    "limits.max_batch_events": "Most events of one request.",
    "log.level": "Least level that is written.",
    "log.format": "`auto`: console on a terminal, else JSON lines.",
}
"""What the code's own docstrings leave open; they are used where this says nothing."""

_ENVIRONMENT = {
    "STREAMFOLD_CONFIG": "Settings file, as `--config`.",
    "STREAMFOLD_URL": "The service that commands speak to, as `--url`.",
    "STREAMFOLD_WORKSPACE": "As `--workspace`.",
    "STREAMFOLD_API_KEY": "The key that commands send.",
    "STREAMFOLD_TRACE_HOOKS": "Any value: pluggy traces each hook call on stderr.",
}


# -- settings -------------------------------------------------------------------------------------------------------
class Setting:
    """One setting: its path (``fold.turn_ms``), type, default and meaning."""

    def __init__(self, path: str, kind: Any, default: str, meaning: str) -> None:
        self.path, self.kind, self.default, self.meaning = path, kind, default, meaning


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """Yield all settings in order; tables by name and lists of tables as ``NAME`` and ``N``."""
    docs = _field_docs(model)
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        kind = field.annotation
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        meaning = _MEANINGS.get(path) or docs.get(name, "")
        inner = _inner(kind)
        if inner is None:
            yield Setting(path, kind, default, meaning)
            continue
        model_of, step = inner
        yield Setting(path, None if not step else kind, "" if not step else default, meaning)
        yield from settings(model_of, f"{path}.{step}")


def _inner(kind: Any) -> tuple[type[BaseModel], str] | None:
    """Return the section behind a field, and what stands for its key."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, ""
    for argument in get_args(kind):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument, "NAME." if get_origin(kind) is dict else "N."
    return None


def _field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings below the fields of a class: pydantic does not keep them."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found, last = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = " ".join(str(node.value.value).replace("``", "`").split())
            last = ""
        else:
            last = ""
    return found


def _value(value: Any) -> str:
    """Write a default as TOML would have it (paths as text)."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, default=list)


def _kind(kind: Any) -> str:
    if get_origin(kind) is not None:
        arguments = get_args(kind)
        if str(kind).startswith("typing.Literal"):
            return " \\| ".join(json.dumps(a) for a in arguments)
        if get_origin(kind) is UnionType:
            return " \\| ".join(_kind(a) for a in arguments if a is not NoneType)
        if get_origin(kind) is tuple:
            return f"list of {_kind(arguments[0])}"
        return "table"
    if kind is Any or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    return {"str": "text", "Path": "path", "bool": "bool", "int": "integer", "float": "number"}[kind.__name__]


def settings_page() -> str:
    """Make settings.md."""
    lines = [
        "# Settings\n",
        "Settings come from `streamfold.toml` in the working directory (or the file of `--config` or "
        "`STREAMFOLD_CONFIG`), and above it from the environment: `STREAMFOLD_` and the path in capitals, joined by "
        "two underscores (`fold.turn_ms` is `STREAMFOLD_FOLD__TURN_MS`; tables and lists are JSON). Without any file "
        "the defaults run. An unknown key is refused, and the nearest valid one named.\n",
        "| setting | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for one in settings():
        if one.kind is None:
            lines.append(f"| **`[{one.path}]`** | | | {one.meaning} |")
        else:
            default = one.default if one.default in ("", "required") else f"`{one.default}`"
            lines.append(f"| `{one.path}` | {_kind(one.kind)} | {default} | {one.meaning} |")
    lines += [
        "\nThe keys of a `[policies.NAME]` table are the policy's own, and `use` where the instance's name is not the "
        "policy's; those of the built-in ones:\n",
        *_policy_configs(),
        "\nThe keys of `[backends.extractor]`, `generator`, `keywords`, `summarizer` and `reranker` with "
        '`use = "llm"`; those of all, `attempts` and `patience_s` say how the model is reached and what it may cost, '
        "and make no new version:\n",
        *_model_configs(),
        "\n## Environment only\n",
        "| variable | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in _ENVIRONMENT.items()),
    ]
    return _page(lines)


def _policy_configs() -> Iterator[str]:
    from streamfold.plugins import builtin

    yield "| policy | key | default |"
    yield "|---|---|---|"
    for policy in builtin.register_policies():
        made = msgspec.to_builtins(policy.Config())
        for name, value in made.items():
            yield f"| `{policy.name}` | `{name}` | `{json.dumps(value)}` |"


def _model_configs() -> Iterator[str]:
    from streamfold.plugins.llm import _helper, extractor, generator
    from streamfold.plugins.llm._client import Connection

    yield "| backend | key | default |"
    yield "|---|---|---|"
    for names, kind in (
        ("extractor", extractor.ExtractorConfig),
        ("generator", generator.GeneratorConfig),
        ("keywords, summarizer, reranker", _helper.HelperConfig),
        ("all", Connection),
    ):
        for field in dataclasses.fields(kind):
            value = {} if field.default_factory is not dataclasses.MISSING else field.default
            default = "required" if value is dataclasses.MISSING else f"`{json.dumps(value)}`"
            yield f"| {names} | `{field.name}` | {default} |"


# -- events ---------------------------------------------------------------------------------------------------------
def events_page() -> str:
    """Make events.md."""
    types = EventTypes(builtin_types())
    lines = [
        "# Event types\n",
        "An event is a [CloudEvents 1.0](https://cloudevents.io) message in JSON. Required attributes: `specversion` "
        '(`"1.0"`), `id`, `source`, `type`. `subject` is derived from the data (a mismatch is refused), `time` is the '
        "time of acceptance where it is missing, and more than 5 minutes ahead is refused. Extensions: `sequence` "
        "(an event whose sequence is not higher than the stored one of its source and subject is logged and not "
        "folded), `traceparent`. The server sets `recordedtime`.\n",
        "The same `source` and `id` again is a *duplicate* (no effect) if type and data are the same, and refused as "
        "`event-id-reused` if they are not. Ids have 1–256 bytes. An unknown field is refused. In `*.patched` types a "
        "missing field is unchanged and `null` deletes it. `*` = required; rules beyond it are in the last column.\n",
        "The type's JSON Schema is at `GET /v1/event-types/{type}`. Plugins add types by the hook "
        "[`register_event_types`](hooks.md).\n",
        "| type | data | meaning |",
        "|---|---|---|",
    ]
    for one in builtin_types():
        fields = []
        for field in msgspec.structs.fields(one.data):
            fields.append(f"`{field.encode_name}`{'*' if field.required else ''}")
        more = _RULES.get(one.name, "")
        if one.erases:
            more = "Hidden at once like a deletion, then removed from stores and log ([how](../how-to/operate.md))."
        lines.append(f"| `{one.name}` | {', '.join(fields)} | {one.doc}{' ' + more if more else ''} |")
    lines.append("\n## Fields\n")
    for name in types.names():
        lines.append(f"### {name}\n")
        lines += _fields(types.json_schema(name))
        lines.append("")
    return _page(lines)


_RULES = {
    "interaction.observed": "Needs `user_id` or `session_id`; `action` is one of view, click, like, dislike, skip, "
    "cart, purchase, rating (which needs `value`) or of the setting `limits.actions`. "
    "`value` is 0 or more: shift a scale that goes below 0, and send what is disliked as `dislike`.",
    "exposure.recorded": "Each of `items` names exactly one of `item_id`, `document_id`, `chunk_id`, `label`.",
    "label.observed": "`target` names exactly one of its fields; `label: null` retracts.",
    "feedback.given": "`value` is in −1…1.",
    "class.merged": "Needs `into`.",
    "entity.merged": "Needs `into` (or `undo`).",
    "entity.split": "Needs `into` (or `undo`).",
    "entity.renamed": "Needs `name` (or `undo`).",
    "entity.aliased": "Needs `aliases` (or `undo`).",
}


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    definitions = schema.get("$defs", {})
    body = schema
    if "$ref" in schema:
        body = definitions[schema["$ref"].rpartition("/")[2]]
    yield "| field | type |"
    yield "|---|---|"
    required = set(body.get("required", ()))
    for name, kind in body.get("properties", {}).items():
        yield f"| `{name}`{'*' if name in required else ''} | {_schema(kind, definitions)} |"


def _schema(kind: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        inner = definitions[kind["$ref"].rpartition("/")[2]]
        needed = set(inner.get("required", ()))
        return "{" + ", ".join(f"`{n}`{'*' if n in needed else ''}" for n in inner.get("properties", {})) + "}"
    if "anyOf" in kind:
        parts = [_schema(one, definitions) for one in kind["anyOf"] if one.get("type") != "null"]
        if any(one.get("type") == "null" for one in kind["anyOf"]):
            parts.append("null")
        return " or ".join(dict.fromkeys(parts))
    if "enum" in kind:
        return " or ".join("null" if one is None else f"`{one}`" for one in kind["enum"])
    if kind.get("type") == "array":
        return f"list of {_schema(kind.get('items', {}), definitions)}"
    if kind.get("type") == "object":
        return "flat map" if kind.get("maxProperties") else "map"
    if kind.get("format") == "date-time":
        return "time"
    return str(kind.get("type", "any"))


# -- hooks ----------------------------------------------------------------------------------------------------------
_PURPOSE = {
    "configured": "historic: a plugin registered later still gets it",
    "refuse_event": "first result that is not None wins; HTTP 422 `invalid-event`, on Kafka a dead letter `refused`",
    "committed": "in the thread that folds: be quick",
}


def hook_specs() -> list[tuple[str, Callable[..., Any]]]:
    """Return the hooks by name, in the order of the class."""
    return [(name, value) for name, value in vars(Hooks).items() if inspect.isfunction(value)]


def hooks_page() -> str:
    """Make hooks.md."""
    lines = [
        "# Hooks\n",
        'A plugin is a module named in the entry-point group `streamfold` and enabled by `plugins = ["NAME"]` in the '
        "settings. It implements any of these hooks with `@hookimpl` from `streamfold.core`, taking the arguments that "
        "it needs by name ([pluggy](https://pluggy.readthedocs.io)). Hooks register and observe; nothing on the hot "
        "path goes through them. A hook implementation of another name is refused at start, and so is a name that two "
        "plugins register. `STREAMFOLD_TRACE_HOOKS=1` traces the calls. How to write a plugin: "
        "[write a policy](../how-to/write-a-policy.md).\n",
    ]
    for name, spec in hook_specs():
        signature = inspect.signature(spec)
        arguments = [p for p in signature.parameters.values() if p.name != "self"]
        shown = ", ".join(f"{p.name}: {p.annotation}" for p in arguments)
        returns = signature.return_annotation
        note = _PURPOSE.get(name, "")
        lines += [
            f"## {name}\n",
            "```",
            f"{name}({shown}) -> {returns}",
            "```\n",
            " ".join((inspect.getdoc(spec) or "").replace("``", "`").split()) + (f" ({note})" if note else "") + "\n",
        ]
    return _page(lines)


# -- REST, metrics --------------------------------------------------------------------------------------------------
def _app() -> tuple[Any, Callable[[], None]]:
    """Make the application over a ledger in a temporary folder; the second value closes it."""
    from streamfold.pipelines.node import Node
    from streamfold.pipelines.serve.app import create_app

    folder = tempfile.TemporaryDirectory(prefix="streamfold-docs-")
    quick = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
    node = Node(Settings(data=Path(folder.name), backends=quick, policies={"trending": {}}))
    app = create_app(node)

    def close() -> None:
        app.state.service.close()
        node.close()
        folder.cleanup()

    return app, close


def routes() -> list[tuple[str, str]]:
    """Return (method, path) of every route of the application."""
    app, close = _app()
    try:
        return [
            (method, route.path.replace(":path}", "}"))
            for route in app.routes
            for method in sorted(route.methods - {"HEAD"})
        ]
    finally:
        close()


def endpoints() -> list[Any]:
    """Return the declared endpoints, as the application has them."""
    from streamfold.pipelines.serve import health
    from streamfold.pipelines.serve.app import ENDPOINTS

    return [*ENDPOINTS, health.openapi_endpoint({})]


_TAGS = {"ingest": "Ingest", "ask": "Ask", "operate": "Operate", "lightrag": "As LightRAG"} | {
    "gorse": "As Gorse", "metarank": "As Metarank"
}  # fmt: skip
_NOTES = {
    "lightrag": "Bodies, status codes and refusals (`{detail}`) are LightRAG's; unknown fields are passed over. See "
    "[come from LightRAG](../how-to/come-from-lightrag.md).\n",
    "gorse": "Bodies and status codes are Gorse's, refusals a line of text; unknown fields are passed over. See "
    "[come from Gorse or Metarank](../how-to/come-from-gorse-or-metarank.md).\n",
    "metarank": "Bodies and status codes are Metarank's, refusals `{status, error}`; unknown fields are passed over. "
    "See [come from Gorse or Metarank](../how-to/come-from-gorse-or-metarank.md).\n",
}


def rest_page() -> str:
    """Make rest.md."""
    from streamfold.pipelines.serve.openapi import _PARAMS
    from streamfold.pipelines.serve.problems import STATUS, TITLES

    lines = [
        "# REST\n",
        "JSON under `/v1`; examples of requests and responses are in `/openapi.json`. An unknown parameter or field is "
        "refused with the nearest valid one. Each response carries `X-Request-Id`; each read a "
        "`version: {position, age_ms, policies, degraded}`.\n",
        "**Keys.** `Authorization: Bearer KEY` or `X-API-Key: KEY`; a key belongs to one workspace and has scopes. "
        "An operator's key (scope `operator`) may do everything, in the workspace that `X-Workspace` names. Without "
        "keys the server listens on loopback only and serves the workspace `default`; `POST /v1/keys` or "
        "`streamfold keys create --bootstrap` makes the first one.\n",
        "**Quotas** of a workspace: 429 `rate-limited` with `Retry-After`.\n",
        "**Writes** take `wait=visible` with `wait_ms`: 200 when visible in time, else 202 (still accepted). **Reads** "
        "take `min_position`, `wait_ms`, `max_age_ms`: 503 `position-not-reached` or `too-stale` when missed. "
        "**Pages** take `limit` and `cursor`, and answer `{items, next_cursor}`.\n",
    ]
    listed = endpoints()
    for tag, title in _TAGS.items():
        lines += [
            f"## {title}\n",
            *([_NOTES[tag]] if tag in _NOTES else []),
            "| route | scope | what | parameters | body |",
            "|---|---|---|---|---|",
        ]
        for one in listed:
            if one.tag != tag:
                continue
            scope = "no key" if one.scope is None else one.scope or "any key"
            params = ", ".join(f"`{p}`" for p in one.params)
            body = "" if one.body is None else ", ".join(_struct_fields(one.body))
            path = one.path.replace(":path}", "}")
            lines.append(f"| `{one.method} {path}` | {scope} | {one.summary} | {params} | {body} |")
        lines.append("")
    lines += ["## Parameters\n", "| parameter | meaning | values |", "|---|---|---|"]
    for name, (schema, meaning) in _PARAMS.items():
        values = " or ".join(f"`{v}`" for v in schema.get("enum", ())) or _range(schema)
        lines.append(f"| `{name}` | {meaning} | {values} |")
    lines += [
        "\n## Errors\n",
        "`application/problem+json` (RFC 9457): `{type, title, status, detail, code, request_id, errors}`; `errors` "
        "has `{pointer, code, message, index?}`. Some codes are reserved for later versions (`not-ready`, "
        "`gate-failed`, `rate-limited`).\n",
        "| code | status | title |",
        "|---|---|---|",
        *(f"| `{code}` | {status} | {TITLES[code]} |" for code, status in STATUS.items()),
    ]
    return _page(lines)


def _struct_fields(kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        yield f"`{field.encode_name}`{'*' if field.required else ''}"


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    shown = str(schema.get("type", ""))
    if least is not None:
        shown += f", {least}…{most}" if most is not None else f", ≥ {least}"
    return shown + (f", default {schema['default']}" if "default" in schema else "")


Metric = tuple[str, str, str]
"""Name, type and help."""


def metrics() -> list[Metric]:
    """Return every metric of a serving process, as a scrape shows them."""
    app, close = _app()
    try:
        return _metrics(app.state.service.metrics.text().decode())
    finally:
        close()


def other_metrics() -> dict[str, list[Metric]]:
    """Return the metrics of ``ingest`` and ``worker``."""
    from prometheus_client import CollectorRegistry, generate_latest

    from streamfold.pipelines.ingest import Ingest
    from streamfold.pipelines.logged_errors import LoggedErrors
    from streamfold.pipelines.node import Node
    from streamfold.pipelines.worker import Worker

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Settings(data=Path(folder), kafka=KafkaSettings(bootstrap="-", topics={"t": TopicSettings()})))
        try:
            for name in ("ingest", "worker"):
                registry = CollectorRegistry()
                if name == "ingest":
                    Ingest(node, registry=registry)
                else:
                    Worker(node, "all", 1, registry=registry)
                LoggedErrors(registry)
                found[name] = _metrics(generate_latest(registry).decode())
        finally:
            node.close()
    return found


def _metrics(text: str) -> list[Metric]:
    helps, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, meaning = line.split(" ", 3)
            helps[name] = meaning
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            kinds[name] = kind
    return [(name, kinds[name], helps[name]) for name in helps if not name.endswith("_created")]


_LABELS = {
    "streamfold_events_total": "workspace, outcome",
    "streamfold_http_requests_total": "method, route, status",
    "streamfold_http_seconds": "route",
    "streamfold_visible_seconds": "workspace",
    "streamfold_commit_seconds": "workspace, group",
    "streamfold_folded_events_total": "workspace, group",
    "streamfold_drift_alarms_total": "workspace, policy, detector",
    "streamfold_rules_applied_total": "workspace, rule, outcome",
    "streamfold_alerts_total": "workspace, rule, outcome",
    "streamfold_takeover_held": "workspace, group, verdict",
    "streamfold_position": "workspace",
    "streamfold_lag_events": "workspace, group",
    "streamfold_live_lag_events": "workspace",
    "streamfold_halted": "workspace, group",
    "streamfold_dead_letters": "workspace",
    "streamfold_store_bytes": "workspace, policy, store",
    **dict.fromkeys(
        (f"streamfold_vector_{name}" for name in ("recall", "nprobe", "dead", "frozen", "retrains")),
        "workspace, policy, store",
    ),
    "streamfold_ledger_bytes": "part",
    "streamfold_intake_records_total": "workspace, topic",
    "streamfold_intake_dead_letters_total": "workspace, topic, code",
    "streamfold_intake_lag_events": "workspace, topic, partition",
    "streamfold_intake_paused": "workspace, reason",
    "streamfold_append_seconds": "workspace",
    "streamfold_prepared_events_total": "workspace",
    "streamfold_skipped_events": "workspace, group",
    "streamfold_state_bytes": "workspace, group",
    "streamfold_errors_total": "error",
    "streamfold_last_error_timestamp_seconds": "error",
}


def metrics_page() -> str:
    """Make metrics.md."""
    others = other_metrics()
    lines = [
        "# Metrics\n",
        "`GET /metrics` of each serving process, in Prometheus' text form (with keys: scope `admin`; an "
        "operator's key sees all workspaces, others their own). Counters and histograms are of the answering "
        "process: workers count what they fold themselves, see below (here `streamfold_commit_seconds` and "
        "`streamfold_folded_events_total` stay empty in a process that does not fold). Gauges are read from the "
        "ledger and the views at each scrape.\n",
        *_metrics_table(metrics()),
        "\nIngest and worker processes answer where `metrics.port` or `--metrics-port` says, and nowhere without it "
        "([monitor](../how-to/monitor.md)).",
        *(
            line
            for process, meaning in _PROCESSES.items()
            for line in (f"\n## {process}\n", meaning, *_metrics_table(others[process]))
        ),
    ]
    return _page(lines)


_PROCESSES = {
    "ingest": "Kafka's lag is counted in offsets, up to the last stable one, every few seconds.\n",
    "worker": "Gauges of groups are read from the ledger at each scrape: of those whose lease this worker had last, so "
    "that each group is told of by one worker.\n",
}


def _metrics_table(found: Iterable[Metric]) -> list[str]:
    return [
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(f"| `{name}` | {kind} | {_LABELS.get(name, '')} | {meaning} |" for name, kind, meaning in found),
    ]


# -- command line ---------------------------------------------------------------------------------------------------
def commands() -> list[tuple[str, Any]]:
    """Return ("policies list", command) for every command."""
    from streamfold.pipelines.cli import app

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path, command
            return
        for name, one in inner.items():
            yield from walk(one, f"{path} {name}".strip())

    return list(walk(typer.main.get_command(app), ""))


def cli_page() -> str:
    """Make cli.md."""
    from streamfold.pipelines.cli import app
    from streamfold.pipelines.cli.state import EXIT_CODES

    lines = [
        "# Command line\n",
        "stdout holds the result (`--json`: the REST body), stderr the progress. Global options stand before or after "
        f"the command. Exit codes: {EXIT_CODES}. The key is taken from `STREAMFOLD_API_KEY`. `init`, `doctor`, "
        "`migrate`, `restore`, `serve`, `ingest`, `worker`, `demo`, `size`, `evaluate`, `new-plugin`, "
        "`check-plugin` and `dev --events FILE` need no running service; the others speak HTTP to one.\n",
        "## Global options\n",
        *_options(typer.main.get_command(app).params),
    ]
    for path, command in commands():
        arguments = " ".join(_metavar(p) for p in command.params if p.param_type_name == "argument")
        lines += [f"## {path}\n", "```sh", f"streamfold {path} {arguments}".strip(), "```\n"]
        lines += _help(command.help or "")
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        if options:
            lines += _options(options)
    return _page(lines)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return str(name if argument.required or name.startswith("[") else f"[{name}]")


def _help(text: str) -> Iterator[str]:
    """Yield a command's help; paragraphs kept as they are (click's ``\\b``) become code blocks."""
    for paragraph in text.replace("\b\n", "\b").split("\n\n"):
        if not paragraph.startswith("\b"):
            yield " ".join(paragraph.split()) + "\n"
            continue
        first, _, rest = paragraph[1:].partition("\n")
        yield first + "\n"
        yield f"```\n{textwrap.dedent(rest).rstrip()}\n```\n"


def _options(params: Iterable[Any]) -> Iterator[str]:
    yield "| option | meaning |"
    yield "|---|---|"
    for one in params:
        if one.param_type_name != "option" or one.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        meaning = (one.help or "").replace("|", "\\|")
        shown = one.default
        default = f" Default: `{getattr(shown, 'value', shown)}`." if shown not in (None, "", False, True) else ""
        yield f"| {names} | {meaning}{default} |"
    yield ""


# -- writing --------------------------------------------------------------------------------------------------------
def _page(lines: Iterable[str]) -> str:
    return _MADE + "\n".join(lines).rstrip() + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "events.md": events_page,
    "hooks.md": hooks_page,
    "rest.md": rest_page,
    "metrics.md": metrics_page,
    "cli.md": cli_page,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    check = parser.parse_args(argv).check
    stale = []
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        file, text = REFERENCE / name, make()
        if not file.exists() or file.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, "utf-8")
    sys.stdout.write(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
