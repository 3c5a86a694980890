"""Fixtures for all tests: real services, started when the first test asks for one.

`STREAMFOLD_TEST_KAFKA`, `_POSTGRES`, `_RABBITMQ` and `_REDIS` name servers that run already.
A service that cannot be started fails the tests that need it where CI=true, and leaves them out elsewhere.
"""

import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from streamfold.pipelines.services import (
    SERVICES,
    Kafka,
    Postgres,
    Rabbitmq,
    Redis,
    SecureKafka,
    Service,
    ServiceError,
)

SERVICE_FIXTURES = {"kafka_url", "postgres_url", "postgres_database", "redis_url"}
LONG = (
    "tests/faults/test_distributed.py",
    "tests/unit/core/testing",
    "tests/deploy",
    "tests/faults",
    "tests/unit/benchmarks",
    "tests/unit/pipelines/evaluate",
    "tests/integration",
    "tests/property",
    "tests/simulation",
    "tests/contract",
)
"""Where the long files are, longest first."""
hypothesis.settings.register_profile(
    "unhurried",
    hypothesis.settings.default,  # where CI=true its profile for that: the same examples each time
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("unhurried")
GIVEN = {name: f"STREAMFOLD_TEST_{name.upper()}" for name in SERVICES}


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _leave_out(reason: str) -> None:
    if _in_ci():
        pytest.fail(f"CI must run this test: {reason}", pytrace=False)
    pytest.skip(reason)


class Services:
    """The session's services, each started once; a failed start is not tried again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[str, Service] = {}
        self.failed: dict[str, str] = {}

    def url(self, name: str) -> str:
        if given := os.environ.get(GIVEN[name]):
            return given
        if name not in self.started and name not in self.failed:
            service = SERVICES[name](self.folder)
            try:
                self.started[name] = service.start()
            except ServiceError as error:
                self.failed[name] = str(error)
        if name in self.failed:
            _leave_out(self.failed[name])
        return self.started[name].url

    def close(self) -> None:
        for service in self.started.values():
            service.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    # Not pytest's own folder: it is closed to the user that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="streamfold-tests-"))
    folder.chmod(0o755)
    running = Services(folder)
    yield running
    running.close()


@pytest.fixture(scope="session")
def kafka_url(services: Services) -> str:
    """A broker's address, as 127.0.0.1:PORT. Topics are made when first written to: use names of your own."""
    return services.url("kafka")


@pytest.fixture(scope="session")
def postgres_url(services: Services) -> str:
    """The server's SQLAlchemy URL, shared by all tests: take `postgres_database` to write anything."""
    return services.url("postgres")


@pytest.fixture(scope="session")
def redis_url(services: Services) -> str:
    return services.url("redis")


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty database, dropped after the test."""
    import sqlalchemy

    url = sqlalchemy.make_url(postgres_url)
    name = f"test_{uuid.uuid4().hex}"
    admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'create database "{name}"'))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sqlalchemy.text(f'drop database if exists "{name}" with (force)'))
        admin.dispose()


@pytest.fixture
def own_service() -> Iterator["OwnService"]:
    """Start a service that belongs to one test alone, which may kill and restart it."""
    folder = Path(tempfile.mkdtemp(prefix="streamfold-test-"))
    folder.chmod(0o755)
    own = OwnService(folder)
    yield own
    own.close()


class OwnService:
    def __init__(self, folder: Path) -> None:
        self._services = Services(folder)

    def _start(self, kind: type[Service]) -> Service:
        service = kind(self._services.folder)
        self._services.started[kind.name] = service
        try:
            return service.start()
        except ServiceError as error:
            _leave_out(str(error))
            raise

    def kafka(self) -> Kafka:
        service = self._start(Kafka)
        assert isinstance(service, Kafka)
        return service

    def postgres(self) -> Postgres:
        service = self._start(Postgres)
        assert isinstance(service, Postgres)
        return service

    def redis(self) -> Redis:
        service = self._start(Redis)
        assert isinstance(service, Redis)
        return service

    def secure_kafka(self) -> SecureKafka:
        service = self._start(SecureKafka)
        assert isinstance(service, SecureKafka)
        return service

    def rabbitmq(self) -> Rabbitmq:
        service = self._start(Rabbitmq)
        assert isinstance(service, Rabbitmq)
        return service

    def close(self) -> None:
        self._services.close()


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, where in enumerate(LONG) if item.nodeid.startswith(where)), len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs services; long files first, so that no worker ends with one while the others have nothing."""
    items.sort(key=_rank)
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & SERVICE_FIXTURES or "own_service" in names:
            item.add_marker("services")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were left out, and why."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ").splitlines()[0]] += 1
    if deselected := len(terminalreporter.stats.get("deselected", [])):
        reasons["deselected on the command line"] += deselected
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} tests: {reason}", yellow=True)
    if not reasons:
        terminalreporter.write_line("left out: none")
