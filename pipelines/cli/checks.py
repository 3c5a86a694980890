"""What ``streamfold doctor`` looks at. Each check says what it found and, when bad, what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from streamfold.core.errors import StreamfoldError
from streamfold.core.ledger import check_migrations
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.pipelines.cli.state import CliError, Globals

_SHOWN_VERSIONS = ("streamfold", "numpy", "faiss-cpu", "sqlalchemy", "fastapi", "torch", "celery", "kafka-python")
_SKEW_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding; ``note`` is nothing to repair."""

    name: str
    verdict: Literal["ok", "note", "bad"]
    detail: str


def run_checks(options: Globals) -> list[Check]:
    """Run all checks; without valid settings only those that need none."""
    checks = [_versions()]
    try:
        settings = options.settings()
    except CliError as error:
        return [*checks, Check(name="settings", verdict="bad", detail=str(error))]
    file = options.config or Path(os.environ.get("STREAMFOLD_CONFIG", "streamfold.toml"))
    found = str(file) if file.exists() else f"no {file}: defaults and environment"
    checks.append(Check(name="settings", verdict="ok", detail=found))
    return [*checks, *_plugins(settings), _migrations(settings), *_network(settings), _clock(options), _disk(settings)]


def _versions() -> Check:
    found = []
    for name in _SHOWN_VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Check(name="versions", verdict="ok", detail=f"python {sys.version.split()[0]}, {', '.join(found)}")


def _plugins(settings: Settings) -> Iterator[Check]:
    """Build everything that is declared: a missing plugin or backend shows here, not at the first event."""
    from streamfold.plugins import builtin

    try:
        declared = Registry(settings, [builtin]).declared()
        names = ", ".join(f"{d.name} (version {d.version})" for d in declared)
        yield Check(name="policies", verdict="ok", detail=names or "none declared")
    except (StreamfoldError, ImportError) as error:
        yield Check(name="policies", verdict="bad", detail=str(error))


def _migrations(settings: Settings) -> Check:
    try:
        if check_migrations(settings.ledger_url):
            return Check(name="migrations", verdict="ok", detail=f"current: {_without_secret(settings.ledger_url)}")
    except Exception as error:  # every driver has its own tree; the text says which
        return Check(name="migrations", verdict="bad", detail=f"{type(error).__name__}: {error}")
    if settings.is_embedded:
        return Check(name="migrations", verdict="note", detail="no ledger yet, or an older one: `serve` migrates it")
    return Check(name="migrations", verdict="bad", detail="behind: run `streamfold migrate`")


def _network(settings: Settings) -> Iterator[Check]:
    """Reach the broker and Kafka by TCP, where they are configured."""
    if settings.broker.url:
        parts = urlsplit(settings.broker.url)
        yield _reach("broker", parts.netloc.rpartition("@")[2], 5672 if parts.scheme.startswith("amqp") else 6379)
    elif not settings.is_embedded:
        detail = "no broker.url: work is found by the workers' sweep alone, once a second"
        yield Check(name="broker", verdict="note", detail=detail)
    for address in filter(None, settings.kafka.bootstrap.split(",")):
        yield _reach("kafka", address.strip(), 9092)


def _reach(name: str, address: str, default_port: int) -> Check:
    parts = urlsplit(f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "localhost", parts.port or default_port), timeout=3):
            return Check(name=name, verdict="ok", detail=address)
    except OSError as error:
        return Check(name=name, verdict="bad", detail=f"{address}: {error}")


def _clock(options: Globals) -> Check:
    """Compare with the service's clock (an event more than 5 minutes ahead is refused), if one is running."""
    try:
        with options.client() as client:
            answer = client.request("GET", "/healthz", timeout=2.0)
        skew_s = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (CliError, KeyError, ValueError):
        return Check(name="service", verdict="note", detail=f"none at {options.base_url}")
    verdict: Literal["ok", "bad"] = "ok" if abs(skew_s) < _SKEW_S else "bad"
    return Check(name="service", verdict=verdict, detail=f"{options.base_url}, clocks differ by {skew_s:.0f} s")


def _disk(settings: Settings) -> Check:
    folder = settings.data.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = free > settings.fold.min_free_bytes and os.access(folder, os.W_OK)
    detail = f"{free / 2**30:.1f} GiB free at {folder}" + ("" if enough else "; too little, or not writable")
    return Check(name="disk", verdict="ok" if enough else "bad", detail=detail)


def _without_secret(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host).geturl() if parts.password else url
