"""docker/: no engine runs here, so its files are held to the code, and each service's command is run as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import BaseModel

from streamfold.core.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CLI = Path(sys.executable).parent / "streamfold"
_KEYS = {
    "image", "build", "restart", "environment", "volumes", "depends_on", "command", "entrypoint", "ports",
    "healthcheck", "secrets",
}  # fmt: skip
_CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def compose() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return value


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


# -- the files agree with each other -------------------------------------------------------------------------------
def test_the_services_are_those_of_the_architecture() -> None:
    assert set(OURS) == {"api", "ingest", "fold", "prepare"}
    assert set(SERVICES) - set(OURS) == {"kafka", "topics", "postgres", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_only_what_is_there(name: str) -> None:
    service, top = SERVICES[name], compose()
    assert set(service) <= _KEYS
    assert re.fullmatch(r"[a-z/-]+:[a-z0-9.]+", service["image"])
    needs = service.get("depends_on", {})
    assert set(needs) <= set(SERVICES)
    for other, how in needs.items() if isinstance(needs, dict) else ():
        assert how["condition"] in _CONDITIONS
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        if how["condition"] == "service_completed_successfully":
            assert SERVICES[other]["restart"] == "no"
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":")
        assert target.startswith("/")
        assert (DOCKER / source).exists() if source.startswith(".") else source in top["volumes"]
    assert set(service.get("secrets", ())) <= set(top["secrets"])
    for port in service.get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)  # nothing is open to the world by itself
    environment = service.get("environment", {})
    assert all(isinstance(value, str) for value in environment.values())
    for password in (value for key, value in environment.items() if "PASSWORD" in key):
        assert password.startswith("${")  # no secret in the file


def test_the_dockerfile_installs_the_wheel_and_copies_what_it_needs() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert {"pyproject.toml", "setup.py", "core", "plugins", "pipelines", "migrations"} <= names
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in names} <= set(ignored)
    assert re.search(r"pip install .*streamfold-\*\.whl", text)
    assert text.rindex("USER streamfold") > text.rindex("RUN ")
    assert 'ENTRYPOINT ["streamfold"]' in text
    extras = re.search(r"^ARG EXTRAS=(\w+)", text, re.MULTILINE)
    assert extras is not None
    assert f"\n{extras[1]} = " in (ROOT / "pyproject.toml").read_text()
    port = re.search(r"^EXPOSE (\d+)", text, re.MULTILINE)
    assert port is not None
    assert str(Settings().serve.port) == port[1]
    assert SERVICES["api"]["ports"][0].endswith(f":{port[1]}")


def test_the_wheel_of_the_dockerfile_has_all_packages(tmp_path: Path) -> None:
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "core", "plugins", "pipelines", "migrations"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-m", "pip", *command, str(source)], check=True, capture_output=True, text=True)
    [wheel] = tmp_path.glob("streamfold-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("core/ledger", "plugins", "pipelines/serve", "pipelines/ingest", "migrations/versions"):
        assert f"streamfold/{package}/__init__.py" in names


# -- in step with the code -----------------------------------------------------------------------------------------
def environment_names() -> Iterator[str]:
    for service in OURS.values():
        yield from service["environment"]
    yield from re.findall(r"\b(STREAMFOLD_\w+)=", (DOCKER / "Dockerfile").read_text())


def test_every_environment_name_is_a_setting() -> None:
    for name in set(environment_names()) - {"STREAMFOLD_CONFIG"}:
        model: Any = Settings
        for part in name.removeprefix("STREAMFOLD_").lower().split("__"):
            assert isinstance(model, type), name
            assert issubclass(model, BaseModel), name
            assert part in model.model_fields, name
            model = model.model_fields[part].annotation


def test_the_settings_file_is_valid_and_its_topics_are_made() -> None:
    settings = load_settings(DOCKER / "streamfold.toml")
    [script] = SERVICES["topics"]["command"]
    made = re.search(r"for topic in ([^;]+);", script)
    assert made is not None
    assert set(made[1].split()) == set(settings.kafka.topics)


def test_the_addresses_name_services_and_their_ports() -> None:
    found = OURS["api"]["environment"]
    assert found["STREAMFOLD_KAFKA__BOOTSTRAP"] in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    hosts = [re.search(r"(?:@|//)(\w+):\d+", found[f"STREAMFOLD_{name}__URL"]) for name in ("LEDGER", "BROKER")]
    assert [host and host[1] for host in hosts] == ["postgres", "redis"]
    scrape, processes = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    [names] = processes["dns_sd_configs"]
    assert set(names["names"]) == OURS.keys() - {"api"}
    assert str(names["port"]) == found["STREAMFOLD_METRICS__PORT"]
    [target] = scrape["static_configs"][0]["targets"]
    assert target == "api:8080"
    assert scrape["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "streamfold.yaml").read_text())["providers"]
    path = provider["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in SERVICES["grafana"]["volumes"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(path)
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / home.name).read_text())
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert used == {source["uid"]}


def expressions() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "streamfold.json").read_text())
    queries = [variable["query"] for variable in dashboard["templating"]["list"]]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def samples(text: str) -> dict[str, set[str]]:
    """Names of the samples of a scrape, and the labels they have."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"(streamfold_\w+)(?:{([^}]*)})? ", line):
            found.setdefault(match[1], set()).update(re.findall(r"(\w+)=\"", match[2] or ""))
    return found


# -- each service's command, as a process against real services ----------------------------------------------------
class Stand:
    """The containers of our image as processes, with the compose file's commands and environment."""

    def __init__(self, folder: Path, **addresses: str) -> None:
        self.folder = folder
        self.addresses = addresses
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        ours = dict(OURS[name]["environment"])
        assert set(self.addresses) <= set(ours)
        ours |= self.addresses | {"STREAMFOLD_CONFIG": str(DOCKER / "streamfold.toml")}
        ours |= {"STREAMFOLD_DATA": str(self.folder / name), "STREAMFOLD_CHECKPOINTS": str(self.folder / "checkpoints")}
        return {key: value for key, value in os.environ.items() if not key.startswith("STREAMFOLD_")} | ours

    def run(self, name: str, *words: str) -> str:
        """As ``docker compose run --rm -T NAME WORDS``: the standard output."""
        done = subprocess.run([CLI, *words], env=self.environment(name), capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def start(self, name: str) -> None:
        command = [word if word != "8080" else "0" for word in OURS[name]["command"]]
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen([CLI, *command], env=self.environment(name), stdout=log, stderr=log)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def until(self, name: str, ready: Callable[[], Any], timeout_s: float = 300.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := ready()):
            if time.monotonic() > deadline or self.running[name].poll() is not None:
                pytest.fail(f"{name}: never happened\n{self.log(name).read_text()[-4000:]}")
            time.sleep(0.1)
        return found

    def stop(self) -> dict[str, int]:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=300) for name, process in self.running.items()}

    def close(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)


@pytest.fixture
def stand(postgres_database: str, kafka_url: str, redis_url: str) -> Iterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="streamfold-deploy-") as folder:
        made = Stand(
            Path(folder),
            STREAMFOLD_LEDGER__URL=postgres_database,
            STREAMFOLD_BROKER__URL=redis_url,
            STREAMFOLD_KAFKA__BOOTSTRAP=kafka_url,
            STREAMFOLD_METRICS__PORT="0",  # they share a host here
        )
        yield made
        made.close()


def test_the_services_work_together_as_the_compose_file_starts_them(stand: Stand, kafka_url: str) -> None:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    admin = KafkaAdminClient(bootstrap_servers=kafka_url)
    try:
        admin.create_topics([NewTopic(name, 1, 1) for name in load_settings(DOCKER / "streamfold.toml").kafka.topics])
    except TopicAlreadyExistsError:
        pass
    finally:
        admin.close()
    operator = stand.run("api", "keys", "create", "ops", "--bootstrap")
    scraper = stand.run("api", "keys", "create", "prometheus", "--bootstrap", "--scope", "admin")
    for name in OURS:
        stand.start(name)
    line = stand.until("api", lambda: re.search(r"serves on http://\S+:(\d+)", stand.log("api").read_text()))
    with httpx.Client(base_url=f"http://127.0.0.1:{line[1]}", timeout=120) as client:
        stand.until("api", lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/status").status_code == 401
        producer = KafkaProducer(bootstrap_servers=kafka_url)
        event = {"user_id": "u", "item_id": "lamp", "action": "click"}
        headers = [("ce_specversion", b"1.0"), ("ce_type", b"interaction.observed")]
        headers.append(("content-type", b"application/json"))
        producer.send("events", json.dumps(event).encode(), headers=headers)
        producer.flush(timeout=300)
        producer.close(timeout=5)
        client.headers["Authorization"] = f"Bearer {operator}"
        document = {"text": "The pump is started by the green lever."}
        assert client.put("/v1/documents/pump", json=document).status_code == 202
        trending = lambda: client.get("/v1/trending").json()["items"]  # noqa: E731  # asked until it is there
        assert stand.until("ingest", trending)[0]["item_id"] == "lamp"
        found = lambda: client.post("/v1/query", json={"query": "green lever"}).json()["chunks"]  # noqa: E731
        assert stand.until("prepare", found)[0]["document_id"] == "pump"
        assert client.post("/v1/query", json={}).status_code == 422
        scraped = httpx.get(f"{client.base_url}/metrics", headers={"Authorization": f"Bearer {scraper}"})
    assert scraped.status_code == 200
    known = samples(scraped.text)
    for name in OURS.keys() - {"api"}:
        at = re.search(r"metrics_at url=http://[^ :]+:(\d+)", stand.log(name).read_text())
        assert at is not None, name
        url = f"http://127.0.0.1:{at[1]}/metrics"
        if name == "ingest":  # the lag is asked for every few seconds
            stand.until(name, lambda: "streamfold_intake_lag_events{" in httpx.get(url).text)  # noqa: B023
        text = httpx.get(url).raise_for_status().text
        for metric, of in samples(text).items():
            known.setdefault(metric, set()).update(of)
    for expression in expressions():
        names = set(re.findall(r"\bstreamfold_\w+", expression))
        assert names
        assert names <= set(known), expression
        labels = set(re.findall(r"(\w+)\s*=~?\s*\"", expression))
        labels |= {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
        assert labels <= set().union(*(known[name] for name in names)), expression
    assert stand.stop() == dict.fromkeys(OURS, 0)
