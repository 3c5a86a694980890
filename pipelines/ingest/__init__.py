"""Event intake from Kafka: poll, decode, accept, append in one transaction with the intake's own position.

The ledger, not the broker, knows what was taken: a consumer seeks to the ledger's offset, and each append moves that
offset by a compare-and-set in the transaction that logs the events. So a crash repeats or loses nothing, and a zombie
consumer (two processes reading one partition, however that came about) writes nothing: its compare-and-set fails.
The offsets committed to the broker are for people's lag monitors only.
"""

from __future__ import annotations

from streamfold.pipelines.ingest.loop import Ingest, run
from streamfold.pipelines.ingest.place import Share, Stats
from streamfold.pipelines.ingest.take import Taken, TopicIntake

__all__ = ["Ingest", "Share", "Stats", "Taken", "TopicIntake", "run"]
