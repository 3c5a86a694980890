"""One detached server process: start it, find it again by its pid file, stop it, kill it."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

HOST = "127.0.0.1"
# Below the range that the kernel hands out to clients: a port stays free between a kill and a restart.
PORTS = range(15_000, 32_000)


class ServiceError(RuntimeError):
    """A service could not be started; the message says what to do."""


def free_port() -> int:
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServiceError(f"no free port between {PORTS.start} and {PORTS.stop}")


def run(argv: Sequence[str | Path], *, user: str | None = None, cwd: Path | None = None) -> str:
    """Run a command to its end; a failure becomes a `ServiceError` that quotes what it printed."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd=cwd,
        check=False,
    )
    if done.returncode:
        raise ServiceError(f"{argv[0]} failed with status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def install(services: Iterable[type["Service"]]) -> None:
    """Install the distribution's packages of the services that lack a program. Needs root and apt-get."""
    packages = sorted({package for service in services if service.missing() for package in service.packages})
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ServiceError(f"to install {' '.join(packages)}, be root on a system with apt-get")
    # RUNLEVEL=1 keeps the packages from starting servers of their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for step in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *step],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"apt-get {' '.join(step)} failed:\n{done.stdout[-2000:]}")


def _stat(pid: int) -> tuple[str, int, str] | None:
    """State, parent and start time of a process, or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), fields[19]


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            parents.setdefault(stat[1], []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


class Service:
    """A server that belongs to one folder: its settings, data, log and pid file are all in there."""

    name: ClassVar[str]
    setting: ClassVar[str]  # the environment variable that tells streamfold where it is
    packages: ClassVar[tuple[str, ...]]
    port_names: ClassVar[tuple[str, ...]] = ("main", "other")
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout_s: ClassVar[float] = 180.0
    stop_timeout_s: ClassVar[float] = 60.0

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve() / self.name
        self._process: subprocess.Popen[bytes] | None = None

    # What a service says about itself.

    @classmethod
    def missing(cls) -> str | None:
        """The name of a program that is not installed, or None."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        raise NotImplementedError

    def prepare(self) -> None:
        """Write settings and an empty data folder. Called once for each folder."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def first_start(self) -> None:
        """What is left to do when the server answers for the first time."""

    user: str | None = None

    # Its life.

    @property
    def ports(self) -> dict[str, int]:
        path = self.folder / "ports.json"
        if not path.exists():
            raise ServiceError(f"{self.name} was never started in {self.folder.parent}")
        ports: dict[str, int] = json.loads(path.read_text())
        return ports

    @property
    def port(self) -> int:
        return self.ports["main"]

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def environment(self) -> Mapping[str, str]:
        return {self.setting: self.url}

    def pid(self) -> int | None:
        """The pid of the running server, or None. A recycled pid is not taken for the server."""
        try:
            pid, _, started = (self.folder / "pid").read_text().partition(" ")
        except OSError:
            return None
        if self._process is not None and self._process.pid == int(pid):
            self._process.poll()
        stat = _stat(int(pid))
        return int(pid) if stat and stat[0] != "Z" and stat[2] == started else None

    def start(self) -> Self:
        """Start the server, unless it runs, and return when it answers."""
        if self.pid() is not None:
            return self
        if missing := self.missing():
            raise ServiceError(
                f"{self.name}: {missing} is not installed. Run: apt-get update && "
                f"apt-get install --no-install-recommends {' '.join(self.packages)}   (or add --install as root)"
            )
        prepared, started = self.folder / "prepared", self.folder / "started"
        if not prepared.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            ports = {name: free_port() for name in self.port_names}
            (self.folder / "ports.json").write_text(json.dumps(ports))
            self.prepare()
            prepared.touch()
        self._launch()
        if not started.exists():
            self.first_start()
            started.touch()
        return self

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
            )
        pid = self._process.pid
        stat = _stat(pid)
        (self.folder / "pid").write_text(f"{pid} {stat[2] if stat else ''}")
        deadline = time.monotonic() + self.start_timeout_s
        while not self._answers():
            if self._process.poll() is not None:
                raise ServiceError(f"{self.name} ended with status {self._process.returncode}:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServiceError(f"{self.name} did not answer in {self.start_timeout_s:.0f} s:\n{self._log_tail()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self.is_ready()
        except OSError:
            return False

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        pid = self.pid()
        if pid is None:
            self._ended(0.0)
            return
        os.kill(pid, self.stop_signal)
        if not self._ended(self.stop_timeout_s):
            self.kill()

    def kill(self) -> None:
        """End the server and its children at once, as a crash would."""
        pid = self.pid()
        if pid is None:
            self._ended(0.0)
            return
        for victim in (pid, *_descendants(pid)):
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not self._ended(10.0):
            raise ServiceError(f"{self.name} (pid {pid}) outlived SIGKILL")

    def restart(self) -> Self:
        """Stop the server if it runs, and start it on the same port and data."""
        self.stop()
        return self.start()

    def remove(self) -> None:
        """Kill the server and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        if self._process is not None:
            self._process.wait(5)  # it has ended: collect its status
            self._process = None
        return True
