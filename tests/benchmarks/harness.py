"""What the benchmarks share: CPU and bytes of processes, figures, made-up events, processes and HTTP."""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SEED = 7
BATCH = 500
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]


@dataclass
class Figure:
    """One measured number; ``repeats`` has every run's, ``value`` their median."""

    name: str
    unit: str
    bar: float
    aim: float | None = None
    higher: bool = False
    repeats: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return float(np.median(self.repeats))

    @property
    def reached(self) -> bool:
        return self.value >= self.bar if self.higher else self.value <= self.bar

    def line(self) -> str:
        spread = f"{min(self.repeats):,.4g}–{max(self.repeats):,.4g}" if len(self.repeats) > 1 else "one run"
        sign = "≥" if self.higher else "≤"
        aim = "" if self.aim is None else f" (aim {self.aim:,.4g})"
        notes = "; ".join(f"{key} {value}" for key, value in self.notes.items())
        verdict = "reached" if self.reached else "MISSED"
        bar = f"bar {sign} {self.bar:,.4g}{aim}: {verdict}"
        return f"{self.name}: {self.value:,.5g} {self.unit} [{spread}], {bar}; {notes}"


def report(figures: Iterable[Figure]) -> None:
    """Print the figures."""
    for figure in figures:
        print("  " + figure.line(), flush=True)


def save(figures: Iterable[Figure], out: Path) -> None:
    """Write the figures and the machine as JSON."""
    rows = [asdict(f) | {"value": f.value, "reached": f.reached} for f in figures]
    out.write_text(json.dumps({"machine": machine(), "figures": rows}, indent=1, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """Say what was measured on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": ?")
    names = ("sqlalchemy", "msgspec", "uvicorn", "numpy", "faiss-cpu", "psycopg", "kafka-python", "celery")
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in names},
        "seed": SEED,
        "load": load(),
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def percentiles(samples: Sequence[float]) -> dict[int, float]:
    """Return p50 and p99 in milliseconds."""
    values = np.percentile(np.array(samples) * 1e3, [50, 99])
    return {50: float(values[0]), 99: float(values[1])}


# -- processes ---------------------------------------------------------------------------------------------------------
def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that ended included."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in process.children(recursive=True):
            try:
                t = child.cpu_times()
            except psutil.Error:
                continue
            total += t.user + t.system + t.children_user + t.children_system
        return float(total)
    except psutil.Error:
        return 0.0


class Meter:
    """CPU seconds of named processes from its making to each reading."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._first = {name: cpu_s(pid) for name, pid in pids.items()}
        self._start = time.monotonic()

    def read(self) -> tuple[float, dict[str, float]]:
        """Return wall seconds and CPU seconds by name."""
        cpu = {name: cpu_s(pid) - self._first[name] for name, pid in self._pids.items()}
        return time.monotonic() - self._start, cpu


def written_bytes(pid: int) -> int:
    """Return the greater of what a process passed to write calls and what it sent to storage (mapped files too)."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return max(int(fields["wchar"]), int(fields["write_bytes"]))


def settings_file(folder: Path, text: str = "", *, policies: Sequence[str] = ("trending", "vector_index")) -> Path:
    """Write a settings file: hashing encoder, the policies named, and what is passed."""
    tables = "".join(f"[policies.{name}]\n" for name in policies)
    file = folder / "streamfold.toml"
    file.write_text(
        f'data = "{folder}/data"\n[backends.encoder]\nuse = "hashing"\n[backends.chunker]\nuse = "sentences"\n'
        f'{tables}[log]\nformat = "json"\n{text}'
    )
    return file


_SERVE = """import sys, time, faiss
import streamfold.pipelines.serve.server, streamfold.plugins.builtin, streamfold.plugins.vector_index
from streamfold.pipelines.cli import main
print("imported", time.monotonic(), file=sys.stderr, flush=True)
sys.argv = ["streamfold", "serve", "--port", "0"]
main()
"""


class Processes:
    """Processes of streamfold over one settings file; all are ended, by id, when the block is left."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, Path] = {}

    def start(self, name: str, module: str, *words: str) -> subprocess.Popen[bytes]:
        return self._start(name, "-m", f"streamfold.pipelines.{module}", *words)

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        log = self.file.parent / f"{name}.log"
        command = [sys.executable, *words]
        environ = os.environ | {
            "STREAMFOLD_CONFIG": str(self.file),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environ, cwd=self.file.parent)
        self.running[name], self.logs[name] = process, log
        return process

    def serve(self, name: str = "serve") -> Client:
        """Start the service, and return a client once it is ready."""
        process = self._start(name, "-c", _SERVE)
        port = until(lambda: self._port(name), 60, lambda: self.tail(name))
        client = Client(port)
        until(lambda: client.get("/readyz")[0] == 200, 120, lambda: self.tail(name))
        client.pid = process.pid
        return client

    def imported_at(self, name: str = "serve") -> float:
        """Return when a service had made its imports, by the monotonic clock."""
        lines = self.logs[name].read_text(errors="replace").splitlines()
        return float(next(line for line in lines if line.startswith("imported ")).split()[1])

    def _port(self, name: str) -> int:
        for line in self.logs[name].read_text(errors="replace").splitlines():
            if "serves on http://" in line:
                return int(line.rsplit(":", 1)[1])
        if self.running[name].poll() is not None:
            raise RuntimeError(f"{name} ended:\n{self.tail(name)}")
        return 0

    def tail(self, name: str) -> str:
        return self.logs[name].read_text(errors="replace")[-3000:]

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.running.items() if process.poll() is None}

    def stop(self, name: str, timeout_s: float = 30.0) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def close(self) -> None:
        for name in list(self.running):
            self.stop(name)


@contextmanager
def processes(text: str = "", *, policies: Sequence[str] = ("trending", "vector_index")) -> Iterator[Processes]:
    """A scratch folder with a settings file, and processes on it; both are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="streamfold-bench-"))
    made = Processes(settings_file(folder, text, policies=policies))
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def until(
    ready: Callable[[], Any], timeout_s: float, told: Callable[[], str] = lambda: "", every_s: float = 0.05
) -> Any:
    """Wait for a true value."""
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain\n{told()}")
        time.sleep(0.05)
    return found


class Client:
    """One kept-alive connection to the service."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pid = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._used = 0.0

    def twin(self) -> Client:
        return Client(self.port)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if time.monotonic() - self._used > 3:
            self._connection.close()  # the server does so after 5 s without a request
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        self._used = time.monotonic()
        return response.status, answer

    def get(self, path: str) -> tuple[int, bytes]:
        return self._ask("GET", path, None, {})

    def post(self, body: bytes, *, visible: bool = False) -> dict[str, Any]:
        """Post a batch of events; anything but success is an error, except 429, which is tried again."""
        path = "/v1/events?wait=visible&wait_ms=30000" if visible else "/v1/events"
        while True:
            status, answer = self._ask("POST", path, body, {"content-type": "application/cloudevents-batch+json"})
            if status in (200, 202):
                return dict(json.loads(answer))
            if status != 429:
                raise RuntimeError(f"{status}: {answer[:500]!r}")
            time.sleep(0.05)


# -- made-up events ----------------------------------------------------------------------------------------------------
def interaction(number: int, rng: np.random.Generator, source: str = "/bench/shop") -> dict[str, Any]:
    """An interaction of about 300 bytes: 10,000 users, 2,000 items, a long tail."""
    item = int(2_000 * rng.random() ** 3)
    return {
        "specversion": "1.0",
        "id": f"interaction-{number:012d}",
        "source": source,
        "type": "interaction.observed",
        "time": f"2026-01-{1 + number // 86_400 % 28:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:00Z",
        "data": {
            "user_id": f"user-{int(rng.integers(10_000))}",
            "item_id": f"item-{item}",
            "action": ("view", "click", "purchase")[int(rng.integers(3))],
            "context": {"page": "start", "device": "phone"},
        },
    }


def document(number: int, rng: np.random.Generator, source: str = "/bench/docs") -> dict[str, Any]:
    """A document of 120 words in eight sentences, over 20,000 word forms with Zipf's tail."""
    ranks = (20_000 ** rng.random(120)).astype(int)
    found = [word(int(rank)) for rank in ranks]
    text = " ".join(" ".join(found[i : i + 15]).capitalize() + "." for i in range(0, 120, 15))
    return {
        "specversion": "1.0",
        "id": f"document-{number:09d}",
        "source": source,
        "type": "document.upserted",
        "data": {"document_id": f"document-{number}", "title": f"Document {number}", "text": text},
    }


def word(rank: int) -> str:
    """Return the word form of a rank."""
    n, parts = rank + len(SYLLABLES), []
    while n:
        n, digit = divmod(n, len(SYLLABLES))
        parts.append(SYLLABLES[digit])
    return "".join(parts)


def bodies(make: Callable[..., dict[str, Any]], first: int, count: int, size: int = BATCH) -> list[bytes]:
    """Return batches of events as HTTP bodies."""
    rng = np.random.default_rng([SEED, first])
    return [
        json.dumps([make(n, rng) for n in range(start, min(start + size, first + count))]).encode()
        for start in range(first, first + count, size)
    ]
