"""Apache Kafka: one broker that is its own controller. Its jars come from the registry, by Maven, into a cache."""

import base64
import os
import shutil
import socket
import struct
import tempfile
import uuid
from importlib import resources
from pathlib import Path

from streamfold.pipelines.services.process import HOST, Service, run

VERSION = "4.1.0"
SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=true
num.partitions=1
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A killed broker may come back only after its session has run out.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
"""
HEAP = ("-Xms256m", "-Xmx512m")
QUICK = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "streamfold" / f"kafka-{VERSION}"


def fetch_jars() -> Path:
    """The folder of Kafka's jars, filled by Maven when it is not there yet."""
    cache = _cache()
    if cache.is_dir():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
        pom, jars = Path(scratch) / "pom.xml", Path(scratch) / "jars"
        pom.write_bytes((resources.files(__package__) / "pom.xml").read_bytes())
        run(["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={jars}"])
        try:
            jars.rename(cache)
        except OSError:
            if not cache.is_dir():  # another process was faster: take its folder
                raise
    return cache


class Kafka(Service):
    name = "kafka"
    setting = "STREAMFOLD_KAFKA__BOOTSTRAP"
    packages = ("openjdk-17-jre-headless", "maven")
    start_timeout_s = 240.0

    @classmethod
    def missing(cls) -> str | None:
        if not shutil.which("java"):
            return "java"
        return None if _cache().is_dir() or shutil.which("mvn") else "mvn"

    @property
    def url(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def plain_port(self) -> int:
        """Where it can be asked in the clear whether it is ready."""
        return self.port

    @property
    def settings(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, main: str, *words: str) -> list[str]:
        return ["java", *HEAP, *QUICK, "-cp", f"{fetch_jars()}/*", main, *words]

    def server_settings(self) -> str:
        """The broker's properties; of a name that comes twice the last one counts."""
        ports = self.ports
        return SETTINGS.format(host=HOST, port=ports["main"], controller_port=ports["other"], data=self.folder / "data")

    def format_options(self) -> list[str]:
        """Further words for formatting the empty data folder."""
        return []

    def prepare(self) -> None:
        self.settings.write_text(self.server_settings())
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        words = [f"--cluster-id={cluster}", f"--config={self.settings}", *self.format_options()]
        run(self._java("kafka.tools.StorageTool", "format", *words))

    def command(self) -> list[str]:
        return self._java("kafka.Kafka", str(self.settings))

    def is_ready(self) -> bool:
        """Does the metadata, asked for without topics, name a broker?"""
        request = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">i?", 0, False)  # Metadata, version 4
        with socket.create_connection((HOST, self.plain_port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.makefile("rb").read(16)  # size, correlation, throttle, number of brokers
        return len(reply) == 16 and struct.unpack(">iiii", reply)[3] >= 1


def start_kafka(folder: Path | str) -> Kafka:
    return Kafka(folder).start()
