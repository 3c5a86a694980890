"""Apache Kafka with TLS and SASL, for tests: a certificate made for it, one user, SCRAM-SHA-512 and PLAIN.

Clients reach it by TLS only; the broker speaks to itself in the clear, on a port that it does not advertise to them.
"""

from pathlib import Path

from streamfold.pipelines.services.kafka import Kafka
from streamfold.pipelines.services.process import HOST, run

USER, PASSWORD = "streamfold", "not-a-secret"
_STORE_PASSWORD = "changeit"
SETTINGS = """
listeners=SASL_SSL://{host}:{port},PLAINTEXT://{host}:{internal},CONTROLLER://{host}:{controller}
advertised.listeners=SASL_SSL://{host}:{port},PLAINTEXT://{host}:{internal}
listener.security.protocol.map=SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
ssl.keystore.type=PKCS12
ssl.keystore.location={keystore}
ssl.keystore.password={store_password}
ssl.key.password={store_password}
"""


class SecureKafka(Kafka):
    name = "kafka-secure"
    port_names = ("main", "other", "internal")

    @property
    def certificate(self) -> Path:
        """PEM of the broker's certificate, which clients trust."""
        return self.folder / "broker.pem"

    @property
    def plain_port(self) -> int:
        return self.ports["internal"]

    def client_options(self, mechanism: str = "SCRAM-SHA-512", password: str = PASSWORD) -> dict[str, str]:
        """What kafka-python (and ``[kafka.security]``) need to get in."""
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": USER,
            "sasl_plain_password": password,
            "ssl_cafile": str(self.certificate),
        }

    def prepare(self) -> None:
        keystore = self.folder / "broker.p12"
        store: list[str | Path] = [
            "-keystore",
            keystore,
            "-storetype",
            "PKCS12",
            "-storepass",
            _STORE_PASSWORD,
            "-alias",
            "broker",
        ]
        names = ["-dname", "CN=streamfold-test", "-ext", f"san=ip:{HOST},dns:localhost", "-ext", "bc:c"]
        run(["keytool", "-genkeypair", *store, "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "30", *names])
        run(["keytool", "-exportcert", "-rfc", *store, "-file", self.certificate])
        super().prepare()

    def server_settings(self) -> str:
        ports = self.ports
        return super().server_settings() + SETTINGS.format(
            host=HOST,
            port=self.port,
            internal=ports["internal"],
            controller=ports["other"],
            user=USER,
            password=PASSWORD,
            keystore=self.folder / "broker.p12",
            store_password=_STORE_PASSWORD,
        )

    def format_options(self) -> list[str]:
        return ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
