"""The simulator's kernel: simulated processes whose threads run one at a time under virtual time, as a schedule says.

The real code runs in real threads, but only one holds the baton. It hands it on at points that the simulator sees:
ledger calls, locks, waiting, fsync, ``crash.point``. What happens at such a point is a decision: nothing, let another
thread go on, freeze the process, kill it, fail the call. A schedule is the set of decisions that are not "nothing",
each named by thread and how many points that thread has passed; hence it can be replayed, and shrunk by leaving
decisions out.
"""

from __future__ import annotations

import _thread
import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP_S = 0.0005
"""What a point costs in virtual time."""
MOST_STEPS = 60_000
FAULTS = ("kill", "power", "down", "lost", "disk", "eio", "enospc", "raise", "drop", "freeze")
EPOCH_S = 1_700_000_000


class Killed(BaseException):
    """The simulated process is dead: its threads unwind, and nothing that they do has an effect any more."""


class Broken(AssertionError):
    """An invariant does not hold, or the simulation did not come to rest."""


@dataclass(frozen=True, slots=True, order=True)
class Decision:
    """What happens at one point: which thread's, its number, what, and a number that says how."""

    thread: str
    point: int
    kind: str
    arg: int = 0

    def __str__(self) -> str:
        return f"{self.thread}#{self.point}:{self.kind}:{self.arg}"

    @classmethod
    def parse(cls, text: str) -> Decision:
        name, _, rest = text.rpartition("#")
        point, kind, arg = rest.split(":")
        return cls(name, int(point), kind, int(arg))


class Schedule:
    """Where decisions come from: drawn by a seed, or a list that was recorded."""

    def __init__(self, seed: int, *, only: Sequence[Decision] | None = None, most_faults: int = 8) -> None:
        self.seed = seed
        self.taken: list[Decision] = []
        self.quiet = False
        """No faults any more, and threads change only when they wait: everything is to come to rest."""
        self._only = None if only is None else {(d.thread, d.point): d for d in only}
        self._rng = random.Random(f"schedule {seed}")
        self._switches = self._rng.choice([0.02, 0.1, 0.3])
        self._fault = self._rng.choice([0.002, 0.006, 0.02])
        self._faults = 0
        self._most_faults = most_faults

    def decide(self, thread: str, point: int, kinds: Sequence[str]) -> Decision | None:
        """The decision at a point; ``kinds`` are the faults that are possible there, "switch" always is."""
        if self.quiet:
            return None
        if self._only is not None:
            found = self._only.get((thread, point))
            decision = found if found is not None and found.kind in ("switch", *kinds) else None
        else:
            decision = self._draw(thread, point, kinds)
        if decision is not None:
            self.taken.append(decision)
        return decision

    def _draw(self, thread: str, point: int, kinds: Sequence[str]) -> Decision | None:
        draw = self._rng.random()
        if kinds and draw < self._fault and self._faults < self._most_faults:
            self._faults += 1
            return Decision(thread, point, self._rng.choice(kinds), self._rng.randrange(1 << 16))
        if draw > 1 - self._switches:
            return Decision(thread, point, "switch", self._rng.randrange(1 << 16))
        return None


@dataclass(eq=False)
class Process:
    """A simulated process. ``immortal``: a client or the judge, at which no fault strikes."""

    name: str
    immortal: bool = False
    alive: bool = True
    frozen_until: float = 0.0
    restart_at: float = 0.0
    skew_s: float = 0.0
    life: int = 0
    parts: dict[str, Any] = field(default_factory=dict)


class Task:
    """One thread of a simulated process."""

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.done = False
        self.points = 0
        self.until: float | None = None
        self.ready: Callable[[], bool] | None = None
        self.ran_at = 0
        self.baton = _thread.allocate_lock()
        self.baton.acquire()


class Kernel:
    """Runs tasks one at a time."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.now = 0.0
        self.steps = 0
        self.atomic = 0
        """Above 0 inside a ledger call: other processes cannot run, as they could not see into a transaction."""
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.trace: list[str] = []
        self.on_power: Callable[[], None] | None = None
        """What a power cut does; None: there is none."""
        self.on_kill: Callable[[Process], None] = lambda process: None
        self._turns = 0
        self._names: dict[str, int] = {}
        self._finished = _thread.allocate_lock()
        self._finished.acquire()
        self._threads: list[threading.Thread] = []
        self.idents: set[int] = set()
        """The simulated threads: any other that is left of another test keeps its real time."""

    # -- tasks ----------------------------------------------------------------------------------------------------
    def spawn(self, process: Process, name: str, work: Callable[[], object]) -> Task:
        """Make a thread of a process; it runs when the schedule comes to it."""
        full = f"{process.name}.{process.life}/{name}"
        number = self._names[full] = self._names.get(full, 0) + 1
        task = Task(process, full if number == 1 else f"{full}-{number}")
        self.tasks.append(task)

        def run() -> None:
            self.idents.add(_thread.get_ident())
            task.baton.acquire()
            try:
                self._check(task)
                work()
            except Killed:
                pass
            except BaseException as error:
                self.fail(error)
            finally:
                self._end(task)

        thread = threading.Thread(target=run, name=task.name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return task

    def run(self) -> None:
        """Run until ``end`` or an error, and until every thread has unwound."""
        first = self._next(None)
        assert first is not None
        self.current = first
        first.baton.release()
        self._finished.acquire()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self.ended = True

    def fail(self, error: BaseException) -> None:
        """Keep the first error and end everything."""
        if self.error is None:
            self.error = error
            self.note(f"FAILED {error!r}"[:2000])
        self.ended = True

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        who = self.current.name if self.current else "-"
        self.trace.append(f"{self.now:9.4f} {who:28} {text}")

    def _end(self, task: Task) -> None:
        task.done = True
        self.tasks.remove(task)
        following = self._next(None)
        self.current = following
        if following is None:
            self._finished.release()
        else:
            following.baton.release()

    # -- points ---------------------------------------------------------------------------------------------------
    def point(self, label: str, kinds: Sequence[str] = ()) -> Decision | None:
        """Pass a point: returns the fault that the caller has to act on, if any."""
        task = self.current
        if task is None:  # set-up and checks outside the simulation
            return None
        self._check(task)
        self.steps += 1
        if self.steps > MOST_STEPS:
            self.fail(Broken(f"no rest after {MOST_STEPS} points: {self.waiting()}"))
            raise Killed
        task.points += 1
        if not self.atomic:
            self.now += STEP_S
        if self.on_power is None:
            kinds = [kind for kind in kinds if kind != "power"]
        if task.process.immortal:
            kinds = [kind for kind in kinds if kind in ("down", "lost", "disk", "drop")]
        elif not self.atomic and kinds:
            kinds = [*kinds, "freeze"]
        decision = self.schedule.decide(task.name, task.points, kinds)
        if decision is None:
            return None
        if decision.kind == "switch":
            if not self.atomic:
                self._hand_on(task, decision.arg)
            return None
        self.note(f"{label}: {decision.kind} ({decision})")
        if decision.kind == "freeze":
            task.process.frozen_until = self.now + 0.05 * (1 + decision.arg % 100)
            self.pause(None, None, "frozen")
            return None
        if decision.kind == "kill":
            self.kill(task.process, decision.arg)
            raise Killed
        if decision.kind == "power" and self.on_power is not None:
            self.on_power()
            raise Killed
        return decision

    def kill(self, process: Process, arg: int = 0) -> None:
        """Kill a process; it is started again after a while."""
        process.alive = False
        process.restart_at = self.now + 0.1 * (arg % 30)
        self.on_kill(process)

    def pause(self, until: float | None, ready: Callable[[], bool] | None, why: str = "") -> None:
        """Wait until a time or until something holds, whichever comes first."""
        task = self.current
        assert task is not None, f"waiting outside the simulation: {why}"
        assert not self.atomic, f"waiting inside a ledger call: {why}"
        self._check(task)
        task.until, task.ready = until, ready
        following = self._next(None)
        assert following is not None
        self._transfer(task, following)
        task.until, task.ready = None, None
        self._check(task)

    def _hand_on(self, task: Task, arg: int) -> None:
        others = [other for other in self.tasks if other is not task and self._wake_at(other) <= self.now]
        if others:
            self._transfer(task, others[arg % len(others)])
            self._check(task)

    def _transfer(self, task: Task, following: Task) -> None:
        if following is task:
            return
        self.current = following
        following.baton.release()
        task.baton.acquire()

    def _check(self, task: Task) -> None:
        if self.ended or not task.process.alive:
            raise Killed

    def is_unwound(self, process: Process) -> bool:
        """Whether no thread of a process is left."""
        return not any(task.process is process for task in self.tasks)

    # -- who is next ----------------------------------------------------------------------------------------------
    def _wake_at(self, task: Task) -> float:
        if self.ended or not task.process.alive:
            return self.now
        at = float("inf") if task.until is None else task.until
        if task.ready is None:
            at = self.now if task.until is None else at
        elif at > self.now and task.ready():
            at = self.now
        return max(at, task.process.frozen_until)

    def _next(self, not_this: Task | None) -> Task | None:
        """Who has waited longest among those that can go on; time passes when nobody can."""
        if not self.tasks:
            return None
        while True:
            at = [(self._wake_at(task), task) for task in self.tasks]
            able = [task for when, task in at if when <= self.now]
            if able:
                chosen = min(able, key=lambda task: task.ran_at)
                self._turns += 1
                chosen.ran_at = self._turns
                return chosen
            soonest = min(when for when, _ in at)
            if soonest == float("inf"):
                self.fail(Broken(f"deadlock: {self.waiting()}"))
            else:
                self.now = soonest

    def waiting(self) -> str:
        return ", ".join(f"{task.name} until {task.until}" for task in self.tasks)


# -- what the code under simulation gets for ``time`` and ``threading`` ----------------------------------------------
class SimTime:
    """The module ``time`` under virtual time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def _is_real(self) -> bool:
        return _thread.get_ident() not in self._kernel.idents

    def monotonic(self) -> float:
        return time.monotonic() if self._is_real() else 1000.0 + self._kernel.now

    perf_counter = monotonic

    def time(self) -> float:
        return time.time() if self._is_real() else EPOCH_S + self._kernel.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def sleep(self, seconds: float) -> None:
        if self._is_real():
            time.sleep(seconds)
        else:
            self._kernel.pause(self._kernel.now + seconds, None, "sleep")


class SimClock:
    """A process's wall clock: virtual time, off by the process's skew."""

    def __init__(self, kernel: Kernel, process: Process) -> None:
        self._kernel, self._process = kernel, process

    def now_us(self) -> int:
        return int((EPOCH_S + self._kernel.now + self._process.skew_s) * 1_000_000)


class SimLock:
    """A lock; who wants it while another thread has it lets others go on."""

    reentrant = False

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._owner: Any = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        kernel = self._kernel
        kernel.point("lock")
        me = kernel.current or "outside"
        if self.reentrant and self._owner is me:
            self._depth += 1
            return True
        if self._owner is not None:
            if not blocking:
                return False
            until = None if timeout < 0 else kernel.now + timeout
            while self._owner is not None:
                if until is not None and kernel.now >= until:
                    return False
                kernel.pause(until, lambda: self._owner is None, "lock")
        self._owner, self._depth = me, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner = None

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimRLock(SimLock):
    reentrant = True


class SimCondition:
    def __init__(self, kernel: Kernel, lock: SimLock | None = None) -> None:
        self._kernel = kernel
        self._lock = lock or SimRLock(kernel)
        self._waiters: list[list[bool]] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        told = [False]
        self._waiters.append(told)
        self._lock.release()
        try:
            until = None if timeout is None else self._kernel.now + timeout
            self._kernel.pause(until, lambda: told[0], "condition")
        finally:
            if told in self._waiters:
                self._waiters.remove(told)
        self._lock.acquire()
        return told[0]

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until = None if timeout is None else self._kernel.now + timeout
        while not (result := predicate()):
            left = None if until is None else until - self._kernel.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        for told in self._waiters[:n]:
            told[0] = True
        del self._waiters[:n]

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class SimEvent:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            until = None if timeout is None else self._kernel.now + timeout
            self._kernel.pause(until, lambda: self._set, "event")
        return self._set


class SimSemaphore:
    def __init__(self, kernel: Kernel, value: int = 1) -> None:
        self._kernel = kernel
        self._value = value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        self._kernel.point("semaphore")
        while self._value <= 0:
            if not blocking:
                return False
            self._kernel.pause(None, lambda: self._value > 0, "semaphore")
        self._value -= 1
        return True

    def release(self) -> None:
        self._value += 1


class SimThread:
    def __init__(
        self,
        kernel: Kernel,
        target: Callable[..., object],
        name: str = "thread",
        args: Sequence[Any] = (),
        daemon: bool = True,
    ) -> None:
        self._kernel = kernel
        self._work = lambda: target(*args)
        self._task: Task | None = None
        self.name = name

    def start(self) -> None:
        current = self._kernel.current
        assert current is not None, f"thread {self.name} started outside the simulation"
        self._task = self._kernel.spawn(current.process, self.name, self._work)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        until = None if timeout is None else self._kernel.now + timeout
        self._kernel.pause(until, lambda: not self.is_alive(), "join")


class SimThreading:
    """The module ``threading`` under simulation; what is not here is the real one's."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def Lock(self) -> SimLock:
        return SimLock(self._kernel)

    def RLock(self) -> SimRLock:
        return SimRLock(self._kernel)

    def Condition(self, lock: SimLock | None = None) -> SimCondition:
        return SimCondition(self._kernel, lock)

    def Event(self) -> SimEvent:
        return SimEvent(self._kernel)

    def BoundedSemaphore(self, value: int = 1) -> SimSemaphore:
        return SimSemaphore(self._kernel, value)

    def Thread(self, target: Callable[..., object], **options: Any) -> SimThread:
        return SimThread(self._kernel, target, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


# -- shrinking --------------------------------------------------------------------------------------------------------
def shrink(
    decisions: Sequence[Decision], fails: Callable[[Sequence[Decision]], bool], *, budget_s: float = 60.0
) -> list[Decision]:
    """Leave out decisions, in halves and then smaller parts, as long as what is left still fails (ddmin)."""
    kept = list(decisions)
    deadline = time.monotonic() + budget_s
    for kind in ("switch", "freeze"):
        without = [d for d in kept if d.kind != kind]
        if len(without) < len(kept) and fails(without):
            kept = without
    size = max(1, len(kept) // 2)
    while kept and time.monotonic() < deadline:
        start, smaller = 0, False
        while start < len(kept) and time.monotonic() < deadline:
            without = kept[:start] + kept[start + size :]
            if fails(without):
                kept, smaller = without, True
            else:
                start += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2)
    return kept


def told(error: BaseException) -> str:
    """An error and where it came from."""
    return "".join(traceback.format_exception(error))[-6000:]
