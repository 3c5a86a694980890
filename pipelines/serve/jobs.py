"""Background jobs of this process (verify, backfills, retries): kept in memory, the newest thousand."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from streamfold.pipelines.serve.logs import logger

Progress = Callable[[int, int], None]
_KEPT = 1000


class Cancelled(Exception):
    """The job was cancelled; raised out of its progress callback."""


@dataclass(slots=True)
class Job:
    """One job and how far it is."""

    kind: str
    workspace: str
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "queued"
    progress: float = 0.0
    result: Any = None
    error: str | None = None
    started: float = 0.0
    asked_us: int = 0
    """By the node's clock, of a verification: what is erased later may be named in its result."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def as_json(self) -> dict[str, Any]:
        eta_s = None
        if self.state == "running" and self.progress > 0:
            eta_s = round((time.monotonic() - self.started) * (1 / self.progress - 1), 1)
        return {
            "job_id": self.job_id,
            "kind": self.kind,
            "state": self.state,
            "progress": round(self.progress, 4),
            "eta_s": eta_s,
            "result": self.result,
            "error": self.error,
        }

    def step(self, done: int, total: int) -> None:
        """Record progress; stops a job that was cancelled."""
        if self.cancelled.is_set():
            raise Cancelled
        self.progress = min(1.0, done / total) if total else 1.0


class Jobs:
    """Runs jobs one after the other: they are heavy, and must not slow the service."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._pool = ThreadPoolExecutor(1, "jobs")
        self._followers: list[threading.Thread] = []
        self._log = logger()

    def start(self, kind: str, workspace: str, work: Callable[[Progress], Any]) -> Job:
        """Queue a job; ``work`` gets a progress callback and returns the result."""
        job = self._keep(Job(kind, workspace))
        self._pool.submit(self._run, job, work)
        return job

    def follow(self, kind: str, workspace: str, work: Callable[[Progress], Any]) -> Job:
        """Follow work that others do: ``work`` only looks now and then, so it need not wait for its turn."""
        job = self._keep(Job(kind, workspace))
        thread = threading.Thread(target=self._run, args=(job, work), name=f"job-{kind}", daemon=True)
        self._followers = [t for t in self._followers if t.is_alive()] + [thread]
        thread.start()
        return job

    def done(self, kind: str, workspace: str, result: Any) -> Job:
        """Keep a job that was done at once."""
        job = self._keep(Job(kind, workspace))
        job.result, job.progress, job.state = result, 1.0, "done"
        return job

    def _keep(self, job: Job) -> Job:
        self._jobs[job.job_id] = job
        while len(self._jobs) > _KEPT:
            del self._jobs[next(iter(self._jobs))]
        return job

    def _run(self, job: Job, work: Callable[[Progress], Any]) -> None:
        if job.cancelled.is_set():
            return
        job.started, job.state = time.monotonic(), "running"
        try:
            job.result = work(job.step)
            job.progress, job.state = 1.0, "done"
        except Cancelled:
            job.state = "cancelled"
        except Exception as error:
            job.error, job.state = f"{type(error).__name__}: {error}", "failed"
            self._log.error("job_failed", kind=job.kind, job_id=job.job_id, exc_info=error)

    def get(self, workspace: str, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job is not None and job.workspace == workspace else None

    def cancel(self, job: Job) -> None:
        job.cancelled.set()
        if job.state == "queued":
            job.state = "cancelled"

    def close(self) -> None:
        for job in self._jobs.values():
            job.cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._followers:
            thread.join(timeout=5)
