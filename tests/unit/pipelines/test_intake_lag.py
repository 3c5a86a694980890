"""How far a Kafka topic is ahead, from what ingest processes left in the ledger."""

from __future__ import annotations

from streamfold.core.ledger.abc import IntakeEnd
from streamfold.pipelines.serve.intake_lag import lag

SECOND = 1_000_000


def end(partition: int, offset: int, seen_s: int, topic_id: str = "t") -> IntakeEnd:
    return IntakeEnd(intake=f"kafka:c:{topic_id}:{partition}", topic="x", next_offset=offset, seen_us=seen_s * SECOND)


def test_the_partitions_of_a_topic_add_up_and_the_one_seen_longest_ago_dates_them() -> None:
    offsets = {"kafka:c:t:0": 7, "kafka:c:t:1": 50}
    ends = [end(0, 10, 100), end(1, 40, 97), end(2, 5, 98)]  # more was taken of 1 since, nothing yet of 2
    assert lag(ends, offsets, 100 * SECOND) == (3 + 0 + 5, 97 * SECOND)


def test_the_lag_is_unknown_while_nobody_looks_at_a_partition() -> None:
    ends = [end(0, 10, 100), end(1, 10, 200)]
    assert lag(ends, {}, 190 * SECOND) == (20, 100 * SECOND)
    assert lag(ends, {}, 191 * SECOND) == (None, 100 * SECOND)
    assert lag([], {}, 0) == (None, None)


def test_of_a_topic_that_was_made_anew_the_new_partitions_count() -> None:
    ends = [end(0, 900, 10, "old"), end(1, 900, 10, "old"), end(0, 4, 500, "new")]
    assert lag(ends, {"kafka:c:old:0": 1, "kafka:c:new:0": 1}, 501 * SECOND) == (3, 500 * SECOND)
