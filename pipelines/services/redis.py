"""Redis: the broker of the Celery workers. It keeps nothing on disk, as wake-ups need no durability."""

import shutil
import socket
from pathlib import Path

from streamfold.pipelines.services.process import HOST, Service


class Redis(Service):
    name = "redis"
    setting = "STREAMFOLD_BROKER__URL"
    packages = ("redis-server",)

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("redis-server") else "redis-server"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        options = {"bind": HOST, "port": str(self.port), "dir": str(self.folder), "save": "", "appendonly": "no"}
        return ["redis-server", *(word for key, value in options.items() for word in (f"--{key}", value))]

    def is_ready(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")


def start_redis(folder: Path | str) -> Redis:
    return Redis(folder).start()
