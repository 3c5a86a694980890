"""`python -m streamfold.pipelines.services up|down|status`: run Kafka, PostgreSQL, RabbitMQ and Redis in a folder."""

import argparse
import sys
from pathlib import Path

from streamfold.pipelines.services import SERVICES, Service, ServiceError, install


def _chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SERVICES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(SERVICES)}")
    return names


def _up(services: list[Service], env_file: Path | None, install_missing: bool) -> None:
    if install_missing:
        install([type(service) for service in services])
    lines = []
    for service in services:
        service.start()
        lines += [f"{key}={value}" for key, value in service.environment().items()]
    if env_file:
        env_file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _down(services: list[Service]) -> None:
    for service in services:
        running = service.pid() is not None
        service.stop()
        print(f"{service.name}: {'stopped' if running else 'was not running'}")


def _status(services: list[Service]) -> int:
    stopped = 0
    for service in services:
        pid = service.pid()
        stopped += pid is None
        print(f"{service.name}: " + (f"running, pid {pid}, {service.url}" if pid else "stopped"))
    return 1 if stopped else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m streamfold.pipelines.services", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "start, and print the settings"), ("down", "stop"), ("status", "what runs where")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--dir", type=Path, default=Path(".services"), help="scratch folder (%(default)s)")
        command.add_argument("--only", type=_chosen, default=list(SERVICES), metavar="NAMES", help="as kafka,redis")
        if name == "up":
            command.add_argument("--env-file", type=Path, help="write the settings there, too")
            command.add_argument("--install", action="store_true", help="install what is missing (root, apt-get)")
    options = parser.parse_args(argv)
    services = [SERVICES[name](options.dir) for name in options.only]
    try:
        match options.command:
            case "up":
                _up(services, options.env_file, options.install)
            case "down":
                _down(services)
            case _:
                return _status(services)
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
