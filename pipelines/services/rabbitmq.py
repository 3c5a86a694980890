"""RabbitMQ: the other broker of the Celery workers, with the distribution's package, for one user on loopback."""

import shutil
import socket
import subprocess
from pathlib import Path

from streamfold.pipelines.services.process import HOST, Service

SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The server itself: the program in the path of Debian's package changes to a user of its own first."""


class Rabbitmq(Service):
    name = "rabbitmq"
    setting = "STREAMFOLD_TEST_RABBITMQ"  # the broker in .services.env is Redis
    packages = ("rabbitmq-server",)
    port_names = ("main", "other", "epmd")

    @classmethod
    def missing(cls) -> str | None:
        return None if SCRIPT.exists() and shutil.which("epmd") else "rabbitmq-server"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    def prepare(self) -> None:
        for name in ("plugins", "env.conf"):
            (self.folder / name).write_text("[]." if name == "plugins" else "")

    def command(self) -> list[str]:
        ports, folder = self.ports, self.folder
        environment = {
            "HOME": folder,  # of Erlang's cookie
            "ERL_EPMD_PORT": ports["epmd"],
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"streamfold{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": ports["other"],
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": folder / "server.pid",
            "RABBITMQ_CONF_ENV_FILE": folder / "env.conf",
            "RABBITMQ_CONFIG_FILE": folder / "none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
        }
        return ["env", *(f"{name}={value}" for name, value in environment.items()), str(SCRIPT)]

    def is_ready(self) -> bool:
        """Does it open AMQP 0-9-1 with a frame of its own?"""
        with socket.create_connection((HOST, self.port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"

    def stop(self) -> None:
        super().stop()
        self._stop_epmd()

    def kill(self) -> None:
        super().kill()
        self._stop_epmd()

    def _stop_epmd(self) -> None:
        """End Erlang's port mapper, which outlives the server that started it."""
        if (self.folder / "ports.json").exists() and self.missing() is None:
            subprocess.run(["epmd", "-port", str(self.ports["epmd"]), "-kill"], capture_output=True, check=False)


def start_rabbitmq(folder: Path | str) -> Rabbitmq:
    return Rabbitmq(folder).start()
