"""PostgreSQL: the ledger of the distributed shape, with the distribution's programs and fsync on."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from streamfold.pipelines.services.process import HOST, Service, ServiceError, run

SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = on
max_connections = 100
shared_buffers = '128MB'
min_wal_size = '64MB'
max_wal_size = '256MB'      # recovery after a crash takes long with a large one
checkpoint_timeout = '5min'
logging_collector = off
"""


def _programs() -> Path | None:
    """The newest installed version's folder of programs."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found.sort(key=lambda path: float(path.parent.name))
    if not found and (initdb := shutil.which("initdb")):
        return Path(initdb).resolve().parent
    return found[-1] if found else None


def _can_enter(user: str, folder: Path) -> bool:
    entered = subprocess.run(["test", "-x", str(folder)], user=user, group=user, extra_groups=[], cwd="/", check=False)
    return entered.returncode == 0


class Postgres(Service):
    name = "postgres"
    setting = "STREAMFOLD_LEDGER__URL"
    packages = ("postgresql",)
    stop_signal = signal.SIGINT  # "fast": roll back, close, end

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        if os.geteuid() == 0:  # the server refuses to run as root
            self.user = "postgres"

    @classmethod
    def missing(cls) -> str | None:
        return None if _programs() else "initdb"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/streamfold"

    @property
    def data(self) -> Path:
        return (self.folder / "data").resolve()

    def _program(self, name: str) -> Path:
        programs = _programs()
        if programs is None:
            raise ServiceError(f"postgres: {name} is not installed")
        return programs / name

    def prepare(self) -> None:
        data = self.folder / "data"
        if self.user:
            if _can_enter(self.user, self.folder):
                data.mkdir(mode=0o700)
            else:  # below a folder of root's own: keep the data where the server's user can go
                data.symlink_to(tempfile.mkdtemp(prefix="streamfold-postgres-"))
            account = pwd.getpwnam(self.user)
            os.chown(data, account.pw_uid, account.pw_gid)
        initdb = [str(self._program("initdb")), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        run([*initdb, "--locale=C.UTF-8", "--no-sync"], user=self.user, cwd=Path("/"))
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(port=self.port))

    def command(self) -> list[str]:
        return [str(self._program("postgres")), "-D", str(self.data)]

    def is_ready(self) -> bool:
        argv = [str(self._program("pg_isready")), "-q", "-h", HOST, "-p", str(self.port), "-U", "postgres"]
        return subprocess.run(argv, cwd="/", check=False).returncode == 0

    def first_start(self) -> None:
        run([self._program("createdb"), "-h", HOST, "-p", str(self.port), "-U", "postgres", "streamfold"])

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.data, ignore_errors=True)
        super().remove()


def start_postgres(folder: Path | str) -> Postgres:
    return Postgres(folder).start()
