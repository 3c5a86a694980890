"""Settings: ``streamfold.toml``, environment variables above it, defaults that run without any file.

Environment names are ``STREAMFOLD_`` and the path joined by two underscores: ``STREAMFOLD_LEDGER__URL``. An unknown
key is a ``ConfigError`` that names the nearest valid one.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streamfold.core.errors import ConfigError, nearest


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LedgerSettings(_Section):
    """Where the ledger is."""

    url: str = ""
    """SQLAlchemy URL; empty: SQLite below the data folder. ``postgresql+psycopg://…`` for the distributed shape."""


class BrokerSettings(_Section):
    """The Celery broker of the distributed shape."""

    url: str = ""
    """``redis://…`` or ``amqp://…``; empty: no broker (the workers' sweep alone finds work)."""


class TopicSettings(_Section):
    """One Kafka topic: which workspace, kind and decoder."""

    workspace: str = "default"
    kind: Literal["", "document", "item", "user"] = ""
    """What a key names, for tombstones and plain records."""
    decoder: str = "cloudevents"
    source: str = ""
    allow_user_erasure: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the decoder: the field mapping of ``json``, the tables of ``debezium``."""


class KafkaSettings(_Section):
    """The Kafka intake."""

    bootstrap: str = ""
    topics: dict[str, TopicSettings] = Field(default_factory=dict)
    group: str = "streamfold"
    poll_records: int = Field(default=5000, ge=1)
    security: dict[str, Any] = Field(default_factory=dict)
    """Further kafka-python client options (SASL, TLS)."""


class KeySettings(_Section):
    """One configured API key: SHA-256 hex of the key, its workspace and scopes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    workspace: str = "default"
    scopes: tuple[Literal["ingest", "query", "admin", "operator"], ...] = ("ingest", "query", "admin")


class ServeSettings(_Section):
    """The REST endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    keys: tuple[KeySettings, ...] = ()
    max_body_bytes: int = 16 * 1024 * 1024
    query_threads: int = Field(default=8, ge=1)
    max_open_workspaces: int = Field(default=200, ge=1)
    """Views kept open; the least recently used is closed for another, and opened again when it is asked."""


class QuotaSettings(_Section):
    """What each workspace may use that was not given quotas of its own; unset: no limit."""

    events_per_s: float | None = Field(default=None, ge=0)
    """HTTP answers 429 above it (per replica), Kafka partitions are paused (per ingest process)."""
    bytes: int | None = Field(default=None, ge=0)
    """Of events in the log, as stored."""
    queries_per_s: float | None = Field(default=None, ge=0)
    """Per replica."""


class FoldSettings(_Section):
    """How folds run."""

    turn_ms: int = Field(default=200, ge=1)
    batch_events: int = Field(default=4096, ge=1)
    lease_s: float = Field(default=10.0, gt=0)
    sweep_s: float = Field(default=1.0, gt=0)
    max_warm_groups: int = Field(default=200, ge=1)
    """Groups whose stores a folding process keeps; the one that has not folded for longest makes room for another."""
    max_skips: int = Field(default=100, ge=1)
    """More skips than this in a row halt the group."""
    checkpoint_min_bytes: int = 4 * 1024 * 1024
    prepare_batch: int = Field(default=64, ge=1)
    prepare_timeout_s: float = Field(default=30.0, gt=0)
    view_poll_ms: int = Field(default=20, ge=1)
    max_lag_events: int = 200_000
    """Live lag past which HTTP answers 429 and Kafka is paused."""
    min_free_bytes: int = 256 * 1024 * 1024
    """Disk headroom below which intake stops."""


class RetentionSettings(_Section):
    """How long events stay in the log; by default for ever."""

    keep_s: float = Field(default=0, ge=0)
    """Events older than this leave the log once every group has folded them; 0: none does."""
    compact: bool = False
    """Upserts, patches and deletions that a later upsert or deletion of their subject replaces leave the log; the
    newest of each subject stays, however old."""
    compact_after_s: float = Field(default=86_400, ge=0)
    """Events younger than this are not compacted."""
    archive: bool = True
    """What leaves the log is written to Parquet files first (needs the extra ``archive``); otherwise it is gone."""
    archive_root: str = ""
    """Folder of the archive, seen by every process under this name; empty: ``archive`` below the data folder."""
    dedup_window_s: float = Field(default=30 * 86_400, ge=0)
    """How long an event's id is known, so that sending it again has no effect; 0: for ever."""
    every_s: float = Field(default=86_400, gt=0)
    """How often it is looked what may leave."""


class GateSettings(_Section):
    """What a shadow with a ``quality`` policy is held to before it is promoted, against what is live."""

    delta: float = Field(default=0.001, ge=0)
    """Nats of log loss by which it may be worse."""
    min_users: int = Field(default=100, ge=1)
    """Fewer users with a closed window decide nothing."""
    window_s: float = Field(default=86_400, gt=0)
    """A user counts once, with the mean over so long."""
    max_flips: float = Field(default=0.05, ge=0, le=1)
    """Share of examples that were right and are wrong now."""
    worst_slice: float = Field(default=0.05, ge=0)
    """Nats by which it may be worse among new or known users or items."""
    bytes_ratio: float = Field(default=2.0, gt=0)
    """Times the bytes of what is live."""
    p99_ratio: float = Field(default=2.0, gt=0)
    """Times the time that what is live takes to answer, when it is more than 5 ms."""
    cost_ratio: float = Field(default=5.0, gt=0)
    """Times the time that what is live takes to fold an event."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """How often the bounds may be wrong."""


class RuleSettings(_Section):
    """One rule: what is done about alarms of drift, or told about a version that the gate refuses."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    on: Literal["drift", "gate"] = "drift"
    """Events that it heeds: ``drift``: ``drift.detected``, whoever sent it; ``gate``: ``gate.judged`` with the verdict
    ``fail``: a changed declaration does not take over. Of ``gate`` it can only alert."""
    policy: str = ""
    """Alarms about this policy alone; empty: about any."""
    detector: str = ""
    """Alarms of this detector alone (``adwin``), or of it over one head (``adwin:topic``); empty: of any."""
    level: float = Field(default=1.0, ge=1)
    """Alarms whose statistic is at least so many times its threshold."""
    do: Literal["shadow", "alert", "consolidate"]
    """``shadow``: fold a refreshed candidate beside it; ``alert``: tell somebody; ``consolidate``: rebuild it."""
    at_most_every_s: float = Field(default=86_400, ge=0)
    """After it acted on a policy it leaves that one's alarms alone for so long."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Of a ``shadow``: what differs from the live configuration; needs ``policy``."""
    start: Literal["start", "now"] = Field(default="start", alias="from")
    """Of a ``shadow``: it folds the log from its start, or what comes from now on."""
    rate: int = Field(default=0, ge=0, le=10_000_000)
    """Of a ``shadow``: most events per second that it folds; 0: no limit."""
    url: str = Field(default="", repr=False)
    """Of an ``alert``: where the alarm is posted as JSON; empty: it is logged and counted. Never logged."""
    url_env: str = ""
    """The environment variable that has the URL, where it holds a secret."""
    secret_env: str = ""
    """The environment variable with the token that is sent as ``Authorization: Bearer``. Never logged."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Of one attempt to post."""
    give_up_s: float = Field(default=86_400, gt=0, le=30 * 86_400)
    """An alert that was not taken is posted again after 1, 2, 4, … s, at most 5 minutes, until it is so old."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> RuleSettings:
        for field, of in _OF_ACTION.items():
            if self.do != of and getattr(self, field) != type(self).model_fields[field].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{'from' if field == 'start' else field} is for do = '{of}', not '{self.do}'")
        if self.on == "gate" and (self.do != "alert" or self.detector or self.level > 1):
            raise ValueError("on = 'gate' is for do = 'alert', of any policy or of one; it has no detector or level")
        if self.config and not self.policy:
            raise ValueError("config needs policy: it is that policy's configuration")
        if self.do == "shadow" and self.start == "start" and not self.config:
            raise ValueError(
                "the same configuration folded from the log's start is what is live already: "
                "say from = 'now', or what differs in config"
            )
        if self.url and self.url_env:
            raise ValueError("give url or url_env, not both")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        return self


_OF_ACTION = {"config": "shadow", "start": "shadow", "rate": "shadow"} | dict.fromkeys(
    ("url", "url_env", "secret_env", "timeout_s", "give_up_s"), "alert"
)
"""Fields that one action alone knows."""


class VectorSettings(_Section):
    """How views search vectors."""

    index: Literal["ivf-fp16", "ivf-sq8", "hnsw", "auto", "exact"] = "ivf-fp16"
    """Inverted lists of float16 or 8-bit rows, a graph (mostly read), ``auto``, or every row compared."""
    exact_rows: int = Field(default=16_384, ge=64)
    """Up to so many rows every search is exact."""
    recall: float = Field(default=0.95, gt=0.5, le=1.0)
    """The recall@10 that nprobe is tuned to."""
    probe_every: int = Field(default=500, ge=0)
    """One of so many queries is answered exactly, too, in the background (0: none)."""
    gpu: bool = False
    """Search copies of the large segments on a GPU (needs a faiss-gpu build in place of faiss-cpu)."""


class MetricsSettings(_Section):
    """Where ingest and worker processes answer `GET /metrics`; `serve` does where it serves."""

    host: str = "127.0.0.1"
    """Address to bind. No keys are asked for here: whoever reaches it may read it."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """Unset: nowhere; 0: any free one, named in the log. Each process of a host needs its own: `--metrics-port`, or
    the environment."""


class LimitSettings(_Section):
    """Request and event limits."""

    max_event_bytes: int = 1024 * 1024
    max_batch_events: int = 10_000
    actions: tuple[str, ...] = ()
    """Interaction actions allowed beside the built-in ones."""


class LogSettings(_Section):
    """Structured logs on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


_BACKENDS: dict[str, dict[str, Any]] = {"encoder": {"use": "minilm"}, "chunker": {"use": "sentences"}}


def _default_policies() -> dict[str, dict[str, Any]]:
    return {"graph_index": {}, "trending": {}}


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMFOLD_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data: Path = Path(".streamfold")
    """Folder of the embedded ledger, checkpoints and scratch."""
    checkpoints: str = ""
    """Folder or fsspec URL of checkpoints; empty: ``checkpoints`` below the data folder."""
    plugins: tuple[str, ...] = ()
    """Entry points of the group ``streamfold`` to enable."""
    backends: dict[str, dict[str, Any]] = Field(default_factory=lambda: {k: dict(v) for k, v in _BACKENDS.items()})
    """Per kind (``encoder``, ``chunker``, ``extractor``, ``generator``, ``keywords``, ``summarizer``, ``reranker``):
    ``use`` names the backend, the rest is its configuration. A kind that is not named keeps its default."""
    policies: dict[str, dict[str, Any]] = Field(default_factory=_default_policies)
    """Instances: a table each with the config's fields; ``use`` where the instance's name is not the policy's."""
    on_change: Literal["replace", "replace-ungated", "manual"] = "replace"
    """A declared policy that changed is promoted by itself when caught up and, where its scores are measured, when the
    gate lets it pass; without asking the gate; or by hand."""
    rollback_window_s: float = Field(default=3600.0, ge=0)
    """How long a demoted version folds on, ready for a rollback, before it is retired."""
    ledger: LedgerSettings = LedgerSettings()
    broker: BrokerSettings = BrokerSettings()
    kafka: KafkaSettings = KafkaSettings()
    serve: ServeSettings = ServeSettings()
    quotas: QuotaSettings = QuotaSettings()
    fold: FoldSettings = FoldSettings()
    retention: RetentionSettings = RetentionSettings()
    vectors: VectorSettings = VectorSettings()
    gate: GateSettings = GateSettings()
    """What a shadow with a `quality` policy is held to before it is promoted, against what is live."""
    rules: tuple[RuleSettings, ...] = ()
    """What is done about alarms, ``[[rules]]``; see [classify](../how-to/classify.md)."""
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    """Where ingest and worker processes answer `GET /metrics`; see [monitor](../how-to/monitor.md)."""

    @pydantic.field_validator("backends")
    @classmethod
    def _with_defaults(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {**_BACKENDS, **given}

    @pydantic.field_validator("rules")
    @classmethod
    def _named_once(cls, given: tuple[RuleSettings, ...]) -> tuple[RuleSettings, ...]:
        names = [rule.name for rule in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules are named {twice[0]!r}: what a rule did is kept under its name")
        return given

    @property
    def ledger_url(self) -> str:
        return self.ledger.url or f"sqlite:///{self.data.absolute() / 'ledger.db'}"

    @property
    def checkpoint_root(self) -> str:
        return self.checkpoints or str(self.data.absolute() / "checkpoints")

    @property
    def archive_root(self) -> str:
        return self.retention.archive_root or str(self.data.absolute() / "archive")

    @property
    def is_embedded(self) -> bool:
        return self.ledger_url.startswith("sqlite")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment stands above the file


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """Read ``streamfold.toml`` (or the named file; ``STREAMFOLD_CONFIG``), the environment above it, overrides on top.

    Raises
    ------
    ConfigError : a missing file, invalid TOML, an unknown key (with the nearest valid one) or an invalid value.
    """
    named = path or os.environ.get("STREAMFOLD_CONFIG")
    file = Path(named or "streamfold.toml")
    values: dict[str, Any] = {}
    if file.exists():
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not valid TOML: {error}") from error
    elif named:
        raise ConfigError(f"{file}: no such settings file; write one with `streamfold init` or leave --config out")
    try:
        settings = Settings(**values)
        return settings.model_copy(update=overrides) if overrides else settings
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, file, values)) from error


def _explain(error: pydantic.ValidationError, file: Path, values: dict[str, Any]) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        rule = _rule_named(item["loc"], values)
        if item["type"] == "extra_forbidden":
            lines.append(
                f"{file}: unknown setting '{where}'{rule}{nearest(str(item['loc'][-1]), _fields_at(item['loc'][:-1]))}"
            )
        else:
            lines.append(f"{file}: setting '{where}'{rule}: {item['msg']}")
    return "\n".join(lines)


def _rule_named(loc: tuple[int | str, ...], values: dict[str, Any]) -> str:
    """Say which rule a place in the file is in."""
    if len(loc) < 2 or loc[0] != "rules" or not isinstance(loc[1], int):
        return ""
    rules = values.get("rules")
    rule = rules[loc[1]] if isinstance(rules, list) and loc[1] < len(rules) else None
    return f" (rule {rule['name']!r})" if isinstance(rule, dict) and "name" in rule else ""


def _fields_at(loc: tuple[int | str, ...]) -> set[str]:
    model: Any = Settings
    for part in loc:
        if isinstance(part, int):  # an entry of a list of tables
            model = next(iter(get_args(model)), None)
            continue
        info = getattr(model, "model_fields", {}).get(part)
        model = info.annotation if info is not None else None
    fields = getattr(model, "model_fields", {})
    return {info.alias or name for name, info in fields.items()}
