"""The ledger's tables, for both databases; migrations create them and a test holds the two equal.

Every key starts with the workspace, so that no statement can cross workspaces by forgetting a filter on a join, and
each workspace's rows lie together. The log has no second index: people page it by position, events are found through
``dedup``, and a fold reads it in order. Small rows that are found by key only are stored in their key
(``WITHOUT ROWID``) on SQLite; rows that carry payloads are not, because SQLite keeps long keys' rows in overflow pages.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

metadata = MetaData()

HOT = {"fillfactor": 20}
"""Rows updated in each transaction: room on the page keeps PostgreSQL's updates heap-only."""


def _int(name: str, default: int | None = 0, *, null: bool = False) -> Column[int]:
    server = None if default is None or null else str(default)
    return Column(name, BigInteger, nullable=null, server_default=server)


def _text(name: str, default: str | None = None, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null, server_default=default)


def _blob(name: str, *, null: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=null)


def _key(name: str, kind: type[BigInteger] | type[Text] | type[LargeBinary] = Text) -> Column[object]:
    return Column(name, kind, primary_key=True, autoincrement=False, nullable=False)


meta = Table("meta", metadata, _key("name"), _text("value"))

log_head = Table(
    "log_head",
    metadata,
    _key("workspace"),
    _int("seq"),
    _int("bytes"),
    _int("erased_us"),
    _int("left_upto"),
    postgresql_with=HOT,
    sqlite_with_rowid=False,
)

counters = Table(
    "counters",
    metadata,
    _key("workspace"),
    _key("name"),
    _int("value"),
    postgresql_with=HOT,
    sqlite_with_rowid=False,
)

log = Table(
    "log",
    metadata,
    _key("workspace"),
    _key("seq", BigInteger),
    _int("recorded_us", None),
    _text("type"),
    Column("effect", SmallInteger, nullable=False, server_default="0"),
    _int("retry_of", null=True),
    _text("subject_kind"),
    _text("subject_id"),
    _blob("body"),
    sqlite_with_rowid=False,
)

dedup = Table(
    "dedup",
    metadata,
    _key("workspace"),
    _key("dedup", LargeBinary),
    _int("seq", None),
    _blob("digest"),
    _int("recorded_us", None),
    sqlite_with_rowid=False,
)

sequences = Table(
    "sequences",
    metadata,
    _key("workspace"),
    _key("source"),
    _key("kind"),
    _key("id"),
    _int("sequence", None),
    sqlite_with_rowid=False,
)

deletions = Table(
    "deletions",
    metadata,
    _key("workspace"),
    _key("seq", BigInteger),
    _text("kind"),
    _text("id"),
    sqlite_with_rowid=False,
)

erasures = Table(
    "erasures",
    metadata,
    _key("workspace"),
    _key("position", BigInteger),
    _text("kind"),
    _text("id"),
    _text("state"),
    _int("requested_us"),
    _int("hidden_us"),
    _int("completed_us"),
    _blob("found", null=True),
    _text("report", ""),
    Index(
        "erasures_pending",
        "workspace",
        "position",
        sqlite_where=text("completed_us = 0"),
        postgresql_where=text("completed_us = 0"),
    ),
)

erasure_groups = Table(
    "erasure_groups",
    metadata,
    _key("workspace"),
    _key("position", BigInteger),
    _key("grp"),
    _text("method"),
    _text("state"),
    _int("removed"),
    sqlite_with_rowid=False,
)

erased_subjects = Table(
    "erased_subjects",
    metadata,
    _key("workspace"),
    _key("hash", LargeBinary),
    _int("erased_us", None),
    _int("position", None),
    sqlite_with_rowid=False,
)

departures = Table(
    "departures",
    metadata,
    _key("workspace"),
    _key("number", BigInteger),
    _text("name"),
    _text("reason"),
    _int("first_seq", None),
    _int("last_seq", None),
    _int("events"),
    _int("bytes"),
    _text("digest", ""),
    _text("types"),
    Column("cleared", Boolean, nullable=False, server_default=text("false")),
    _int("made_us"),
)

retention = Table(
    "retention",
    metadata,
    _key("workspace"),
    _int("epoch"),
    _text("owner", null=True),
    _int("lease_until_us"),
    _int("asked_us"),
    _int("ran_us"),
    _int("compacted_upto"),
    _text("report", ""),
)

intakes = Table(
    "intakes",
    metadata,
    _key("workspace"),
    _key("intake"),
    _text("topic", ""),
    _int("next_offset", None),
    _int("events"),
    _int("duplicates"),
    _int("rejected"),
    _int("updated_us"),
    postgresql_with=HOT,
    sqlite_with_rowid=False,
)

instances = Table(
    "instances",
    metadata,
    _key("workspace"),
    _key("instance_id", BigInteger),
    _text("name"),
    _text("use"),
    Column("version", Integer, nullable=False),
    _text("config_hash"),
    _text("config"),
    _text("code_hash"),
    _int("start_seq", None),
    _text("slot"),
    _text("grp"),
    _int("created_us"),
    _int("generation"),
    _int("rate"),
    Index("instances_identity", "workspace", "name", "version", "config_hash", "start_seq", "generation", unique=True),
)

fold_groups = Table(
    "fold_groups",
    metadata,
    _key("workspace"),
    _key("grp"),
    _int("epoch"),
    _int("watermark"),
    _int("commit_no"),
    _text("owner", null=True),
    _int("lease_until_us"),
    _text("checkpoint", null=True),
    _int("checkpoint_commit"),
    _int("checkpoint_watermark"),
    _text("halted", null=True),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    _int("skips"),
    _int("state_bytes"),
    _int("feed_bytes"),
    Column("auto", Boolean, nullable=False, server_default=text("false")),
    _text("replaces", null=True),
    _int("live_from"),
    _int("retire_us"),
    _text("halted_by", null=True),
    _int("halted_at", null=True),
    _int("share_ppm"),
    _text("experiment", ""),
    Column("weighted", Boolean, nullable=False, server_default=text("true")),
    postgresql_with=HOT,
)

commits = Table(
    "commits",
    metadata,
    _key("workspace"),
    _key("grp"),
    _key("commit_no", BigInteger),
    _int("watermark", None),
    _blob("changes"),
    _int("at_us", None),
)

prepared = Table(
    "prepared",
    metadata,
    _key("workspace"),
    _key("instance_id", BigInteger),
    _key("seq", BigInteger),
    Column("state", SmallInteger, nullable=False, server_default="0"),
    _int("attempts"),
    _text("owner", null=True),
    _int("claim_until_us"),
    _blob("value", null=True),
    _text("code", null=True),
    _text("detail", null=True),
)

results = Table("results", metadata, _key("workspace"), _key("backend"), _key("hash", LargeBinary), _blob("value"))

dead_letters = Table(
    "dead_letters",
    metadata,
    _key("workspace"),
    _key("dead_letter_id", BigInteger),
    _text("stage"),
    _text("code"),
    _text("detail"),
    _text("policy", null=True),
    _int("position", null=True),
    _text("event_id", null=True),
    _text("source", null=True),
    _text("source_offset", null=True),
    _text("headers"),
    _blob("payload"),
    _int("attempts", 1),
    _int("at_us"),
)

skips = Table(
    "skips",
    metadata,
    _key("workspace"),
    _key("policy"),
    _key("position", BigInteger),
    Index("skips_position", "workspace", "position"),
    sqlite_with_rowid=False,
)

audit = Table(
    "audit",
    metadata,
    _key("workspace"),
    _key("audit_id", BigInteger),
    _int("at_us", None),
    _text("actor"),
    _text("action"),
    _text("target"),
    _text("reason"),
)

api_keys = Table(
    "api_keys",
    metadata,
    _key("workspace"),
    _key("key_id"),
    _text("name"),
    _text("scopes"),
    _text("sha256"),
    _text("created_by"),
    _int("created_us"),
    _int("revoked_us"),
    Index("api_keys_id", "key_id", unique=True),
)

quotas = Table("quotas", metadata, _key("workspace"), _text("quotas"))

alerts = Table(
    "alerts",
    metadata,
    _key("workspace"),
    _key("alert_id"),
    _text("rule"),
    _int("position", None),
    _text("body"),
    _int("made_us", None),
    _int("attempts"),
    _int("due_us"),
)
