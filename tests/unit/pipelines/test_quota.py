"""Token buckets and limits, by a clock of the test."""

from __future__ import annotations

import math

import pytest

from streamfold.core.ledger.abc import Quotas
from streamfold.core.settings import QuotaSettings
from streamfold.pipelines.quota import Bucket, Limits


class Log:
    """A ledger that says how large a log is, and how often it was asked."""

    def __init__(self) -> None:
        self.size = 0
        self.asked = 0

    def log_bytes(self, workspace: str) -> int:
        self.asked += 1
        return self.size


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def limits(time: Time) -> Limits:
    return Limits(Log(), QuotaSettings(), time)


def test_a_bucket_lets_one_seconds_worth_pass_then_its_rate() -> None:
    bucket = Bucket(10, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(1, 0.0) > 0
    passed = sum(bucket.take(1, 0.0 + step / 100) == 0.0 for step in range(1, 1001))
    assert 99 <= passed <= 101  # ten seconds
    assert sum(bucket.take(1, 1000.0) == 0.0 for _ in range(100)) == 10  # a long rest saves up one second only


def test_a_batch_larger_than_the_rate_passes_and_is_paid_for_after() -> None:
    bucket = Bucket(100, now=0.0)
    assert bucket.take(1000, 0.0) == 0.0
    assert bucket.take(1, 0.0) == pytest.approx(9.01)
    assert bucket.take(1, 8.9) > 0
    assert bucket.take(1, 9.1) == 0.0


def test_asking_for_nothing_takes_nothing() -> None:
    bucket = Bucket(1, now=0.0)
    assert [bucket.take(0, 0.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1, 0.0) == 0.0


def test_a_rate_of_zero_lets_nothing_pass() -> None:
    assert Bucket(0, now=0.0).take(1, 1e9) == math.inf


def test_each_workspace_and_each_quota_has_a_bucket_of_its_own(limits: Limits) -> None:
    limits.given = {"a": Quotas(events_per_s=1, queries_per_s=1)}
    assert limits.take("a", "events_per_s", 1) == 0.0
    assert limits.take("a", "events_per_s", 1) > 0
    assert limits.take("a", "queries_per_s", 1) == 0.0
    assert all(limits.take("b", "events_per_s", 1000) == 0.0 for _ in range(10))


def test_the_settings_quotas_hold_where_none_were_given(time: Time) -> None:
    limits = Limits(Log(), QuotaSettings(queries_per_s=1), time)
    limits.given = {"free": Quotas()}
    assert [limits.take("a", "queries_per_s", 1) > 0 for _ in range(2)] == [False, True]
    assert [limits.take("free", "queries_per_s", 1) > 0 for _ in range(9)] == [False] * 9


def test_a_changed_quota_counts_at_once(limits: Limits) -> None:
    limits.given = {"a": Quotas(events_per_s=1)}
    limits.take("a", "events_per_s", 3600)
    assert limits.take("a", "events_per_s", 1) > 3000
    limits.given = {"a": Quotas(events_per_s=50)}
    assert limits.take("a", "events_per_s", 1) == 0.0


def test_a_full_log_holds_back_until_there_is_room_and_is_not_measured_for_each_event(time: Time) -> None:
    log = Log()
    limits = Limits(log, QuotaSettings(bytes=1000), time)
    assert not any(limits.is_full("a") for _ in range(100))
    log.size = 1000
    assert log.asked == 1
    time.now += 1
    assert limits.is_full("a")
    assert limits.held_back("a") == "bytes"
    log.size = 999
    time.now += 1
    assert limits.held_back("a") is None
