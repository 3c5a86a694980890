"""Fold in processes with other hash seeds; Python's seed is fixed when a process starts.

A worker per seed is started on first use and kept until this process ends: starting one costs a second or two, a job
some milliseconds. A job names modules and classes, so the policy has to be importable: no code travels.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import msgspec

from streamfold.core.codec import pack, unpack
from streamfold.core.testing.lab import Case, CheckFailed, Lab
from streamfold.core.testing.streams import Given

_INSIDE = "STREAMFOLD_KIT_WORKER"
"""Set in a worker's environment: a module that runs checks when imported must not start workers of workers."""

Place = tuple[str, str]
"""A module by its name and its file."""


class Job(msgspec.Struct, kw_only=True):
    """What a worker folds."""

    path: list[str]
    module: Place
    kind: str
    plugins: list[Place]
    config: dict[str, Any]
    policies: dict[str, dict[str, Any]]
    backends: dict[str, dict[str, Any]] | None
    events: list[Given]


def contents_under(lab: Lab, *seeds: str) -> list[dict[str, dict[Any, Any]]]:
    """Fold the lab's stream in a process of each hash seed; return what the stores hold there."""
    job = msgspec.msgpack.encode(_job(lab))
    return [_decoded(_worker(seed).ask(job)) for seed in seeds]


def _job(lab: Lab) -> Job:
    kind, case = lab.kind, lab.case
    if "<locals>" in kind.__qualname__:
        raise CheckFailed(
            f"{kind.__qualname__} is defined inside a function, so no other process can import it (nor could a "
            "worker): define the policy at the top of a module"
        )
    for one in case.plugins:
        if not isinstance(one, ModuleType):
            raise CheckFailed(f"plugins holds {one!r}: give modules, which another process can import")
    return Job(
        path=sys.path,
        module=_place(sys.modules[kind.__module__]),
        kind=kind.__qualname__,
        plugins=[_place(one) for one in case.plugins],
        config=lab.config,
        policies={name: dict(table) for name, table in case.policies.items()},
        backends=None if case.backends is None else {name: dict(table) for name, table in case.backends.items()},
        events=lab.given(),
    )


def _place(module: ModuleType) -> Place:
    return module.__name__, str(getattr(module, "__file__", "") or "")


def _decoded(answer: bytes) -> dict[str, dict[Any, Any]]:
    error, stores = unpack(answer)
    if error:
        raise CheckFailed(f"in a process of its own the policy cannot be folded: {error}")
    return {name: {key: unpack(value) for key, value in rows} for name, rows in stores}


# -- this process -----------------------------------------------------------------------------------------------------
class _Worker:
    def __init__(self, seed: str) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": seed, _INSIDE: seed}
        # sys.path is handed on: the parent may run uninstalled, from a path entry
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        atexit.register(self.stop)

    def ask(self, job: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write(self._process.stdin, job)
            return _read(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise CheckFailed(f"the process with another hash seed ended with code {self._process.wait()}") from error

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_workers: dict[str, _Worker] = {}


def _worker(seed: str) -> _Worker:
    if _INSIDE in os.environ:
        raise CheckFailed(
            "importing the policy's module runs checks: put them into a test, or below if __name__ == '__main__'"
        )
    found = _workers.get(seed)
    if found is None or found._process.poll() is not None:
        found = _workers[seed] = _Worker(seed)
    return found


# -- the worker -------------------------------------------------------------------------------------------------------
def _serve(jobs: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            job = msgspec.msgpack.decode(_read(jobs), type=Job)
        except EOFError:
            return
        try:
            answer: Any = ("", _folded(job))
        except Exception as error:
            answer = (f"{type(error).__name__}: {error}", [])
        _write(answers, pack(answer))


def _folded(job: Job) -> list[Any]:
    sys.path[:] = job.path
    module: Any = _load(job.module)
    kind: Any = module
    for part in job.kind.split("."):
        kind = getattr(kind, part)
    config = msgspec.convert(job.config, kind.Config, strict=False)
    case = Case(
        make=lambda: kind(config),
        plugins=tuple(map(_load, job.plugins)),
        policies=job.policies,
        backends=job.backends,
    )
    with Lab(case) as lab:
        contents = lab.bench().run(lab.logged(job.events)).contents()
    return [(name, [(key, pack(value)) for key, value in rows.items()]) for name, rows in contents.items()]


def _load(place: Place) -> ModuleType:
    """Import a module by its name if that gives the same file, else from the file, afresh when it was changed."""
    name, file = place
    if name != "__main__":
        try:
            found = importlib.import_module(name)
            if not file or Path(str(found.__file__)) == Path(file):
                return found
        except ImportError:
            pass
    name = f"_streamfold_kit_{name.strip('_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"the module {place[0]} has no file to import it from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    return stream.read(int.from_bytes(head, "little"))


if __name__ == "__main__":
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # a policy that prints must not break the answers
    _serve(sys.stdin.buffer, out)
