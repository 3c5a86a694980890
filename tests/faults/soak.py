"""The long form of the fault tests: 1,000 kill -9, then an hour under load in which memory has to stay flat.

``make soak`` runs all of it (some hours); ``make soak ARGS="--kills 8 --minutes 1"`` is the short form. Half of the
kills go to the embedded service, half to ingest, worker and API of the distributed shape, at crash points and at
random moments, and after each everything is compared with the oracle, as in the tests beside this. The exit code is 0
when nothing was lost or doubled, every replay was equal, and no process has grown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
import test_distributed as distributed
import test_service_kills as embedded
from harness import Proc, check_everything, pick

from streamfold.pipelines.services import SERVICES

PER_LIFE = 25
"""Kills of one installation; then a fresh one, so that comparing everything after each stays affordable."""
SAMPLE_S = 2.0


@dataclass
class Row:
    """A line of the final table."""

    what: str
    done: int = 0
    seconds: float = 0.0
    events: int = 0
    said: str = ""
    failed: bool = False


@dataclass
class Memory:
    """Resident bytes of a process over time."""

    name: str
    process: Proc
    samples: list[float] = field(default_factory=list)

    def sample(self) -> None:
        assert self.process._process is not None
        self.samples.append(psutil.Process(self.process._process.pid).memory_info().rss / 2**20)

    def thirds(self) -> tuple[float, float]:
        """Medians of the second and the last third; the first is warming up."""
        third = max(1, len(self.samples) // 3)
        return statistics.median(self.samples[third : 2 * third] or self.samples), statistics.median(
            self.samples[-third:]
        )


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def timed(row: Row) -> Iterator[None]:
    """Count a part's time; an error ends the part, not the others."""
    started = time.monotonic()
    try:
        yield
    except Exception as error:
        row.failed, row.said = True, repr(error)[:200]
        traceback.print_exc()
    finally:
        row.seconds = time.monotonic() - started


@contextmanager
def stack(folder: Path) -> Iterator[distributed.Stack]:
    """The distributed shape with services of its own."""
    with ExitStack() as undo:
        place = Path(tempfile.mkdtemp(prefix="streamfold-soak-"))
        place.chmod(0o755)  # PostgreSQL runs as a user of its own
        own = {}
        for name in ("kafka", "postgres", "redis"):
            own[name] = SERVICES[name](place)
            undo.callback(own[name].remove)
            own[name].start()
        made = distributed.Stack(folder, own)
        undo.callback(made.close)
        made.produce(10)
        made.ensure_running()
        made.pump(lambda: len(made.sender.acknowledged) > 50)
        yield made


def kill_embedded(folder: Path, kills: int, seed: int, row: Row) -> None:
    points = pick(embedded.POINTS, kills, seed)
    for first in range(0, kills, PER_LIFE):
        made = embedded.Installation(folder / f"embedded-{first}")
        try:
            for number in range(first, min(kills, first + PER_LIFE)):
                embedded.test_a_killed_service_loses_and_doubles_nothing(made, seed + number, points[number])
                row.done += 1
                if row.done % 5 == 0:
                    say(f"embedded: {row.done}/{kills} kills, {len(made.sender.acknowledged)} events in this life")
            row.events += len(made.sender.acknowledged)
        finally:
            made.service.close()


def kill_distributed(folder: Path, kills: int, seed: int, row: Row) -> None:
    choices = [distributed._target(choice, seed + n) for n, choice in enumerate(pick(distributed.POINTS, kills, seed))]
    for first in range(0, kills, PER_LIFE):
        with stack(folder / f"distributed-{first}") as made:
            for number in range(first, min(kills, first + PER_LIFE)):
                distributed.test_a_killed_process_loses_and_doubles_nothing(made, seed + number, choices[number])
                row.done += 1
                if row.done % 5 == 0:
                    say(f"distributed: {row.done}/{kills} kills, {len(made.sent)} events from Kafka in this life")
            row.events += len(made.sent) + len(made.sender.acknowledged)


def soak(folder: Path, minutes: float, seed: int, growth_mb: float, row: Row, memory: list[Row]) -> None:
    """Both shapes under steady load and questions; then memory and everything that was sent are looked at."""
    rng = random.Random(seed)
    one = embedded.Installation(folder / "soak-embedded")
    with ExitStack() as undo:
        undo.callback(one.service.close)
        one.service.start()
        one.service.wait_ready()
        many = undo.enter_context(stack(folder / "soak-distributed"))
        watched = [Memory("embedded service", one.service)]
        watched += [Memory(f"distributed {name}", process) for name, process in many.processes.items()]
        end, sampled, told = time.monotonic() + minutes * 60, 0.0, time.monotonic()
        while (now := time.monotonic()) < end:
            assert one.sender.send_one(one.service, size=20), one.service.tail()
            many.produce(5)
            many.sender.send_one(many.api, size=10)
            for service in (one.service, many.api):
                assert service.get(f"/v1/trending?n={rng.randint(1, 20)}") == 200, service.tail()
            if now - sampled > SAMPLE_S:
                sampled = now
                for watch in watched:
                    watch.sample()
            if now - told > 30:
                told = now
                said = ", ".join(f"{watch.name} {watch.samples[-1]:.0f} MB" for watch in watched)
                say(f"soak: {(end - now) / 60:.1f} min left, {len(one.sender.acknowledged)} events embedded; {said}")
            time.sleep(0.1)
        for watch in watched:
            middle, last = watch.thirds()
            grown = last - middle
            said = f"{middle:.0f} MB, then {last:.0f} MB ({grown:+.1f}; at most {growth_mb:+g})"
            memory.append(Row(f"memory: {watch.name}", len(watch.samples), said=said, failed=grown > growth_mb))
        assert one.service.stop() in (0, -15), one.service.tail()
        check_everything(one.settings, one.sender.acknowledged)
        many.check()
        row.events = len(one.sender.acknowledged) + len(many.sent) + len(many.sender.acknowledged)
        row.done = round(minutes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kill -9 in all (default: 1000)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of soak (default: 60)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="default: another each time")
    parser.add_argument("--growth-mb", type=float, default=24.0, help="most that a process may grow (default: 24)")
    options = parser.parse_args()
    say(f"seed {options.seed}: {options.kills} kills, {options.minutes:g} minutes of soak")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="streamfold-soak-") as place:
        folder = Path(place)
        half = options.kills // 2
        work: list[tuple[Row, Callable[[Row], None]]] = [
            (Row("kill -9, embedded"), lambda row: kill_embedded(folder, options.kills - half, options.seed, row)),
            (Row("kill -9, distributed"), lambda row: kill_distributed(folder, half, options.seed, row)),
        ]
        memory: list[Row] = []
        if options.minutes > 0:
            work.append(
                (Row("soak, minutes"),
                 lambda row: soak(folder, options.minutes, options.seed, options.growth_mb, row, memory))
            )  # fmt: skip
        for row, part in work:
            rows.append(row)
            with timed(row):
                part(row)
        rows += memory
    print(f"\n{'what':32} {'done':>6} {'seconds':>8} {'events':>8}  result")
    for row in rows:
        result = f"{'FAILED ' if row.failed else 'ok '}{row.said}"
        print(f"{row.what:32} {row.done:6} {row.seconds:8.0f} {row.events:8}  {result}")
    failed = any(row.failed for row in rows)
    print(f"seed {options.seed}: {'FAILED' if failed else 'nothing lost, nothing twice, memory flat'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
