"""What all commands share: global options, exit codes, errors, and which stream a thing is printed to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from streamfold.core.settings import Settings
    from streamfold.pipelines.cli.client import Client

OK, FAILED, USAGE, SOME_REJECTED, UNREACHABLE, TIMED_OUT = range(6)
EXIT_CODES = "0 ok, 1 failed, 2 usage, 3 some rejected, 4 unreachable, 5 timed out"

_FLAGS = frozenset(("--json", "--quiet"))
_VALUED = frozenset(("--config", "--url", "--workspace"))


class CliError(Exception):
    """A command cannot go on: what is said on stderr, and the exit code."""

    def __init__(self, message: str, exit_code: int = FAILED, *, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.body = body


@dataclass(frozen=True, slots=True, kw_only=True)
class Globals:
    """The global options, as every command gets them in ``ctx.obj``."""

    config: Path | None = None
    url: str = ""
    workspace: str = ""
    json: bool = False
    quiet: bool = False

    def settings(self, **overrides: Any) -> Settings:
        """Read the settings (imports core)."""
        from streamfold.core.errors import ConfigError
        from streamfold.core.settings import load_settings

        try:
            return load_settings(self.config, **overrides)
        except ConfigError as error:
            raise CliError(str(error), USAGE) from error

    @property
    def base_url(self) -> str:
        return self.url or _url_of_settings(self.config)

    def client(self) -> Client:
        """Make a client of the service; it connects when first asked."""
        from streamfold.pipelines.cli.client import Client

        return Client(self.base_url, workspace=self.workspace, key=os.environ.get("STREAMFOLD_API_KEY", ""))

    def print(self, text: str, body: Any = None) -> None:
        """Print a result: the body with ``--json``, else the text."""
        if self.json and body is not None:
            print(json.dumps(body, ensure_ascii=False), flush=True)
        else:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Print progress to stderr, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def render(self, what: Any, body: Any) -> None:
        """Print a rich table or panel as the result; the body with ``--json``."""
        if self.json:
            self.print("", body)
        else:
            console().print(what)


def console(*, stderr: bool = False) -> Console:
    """Make a console of stdout or stderr; a pipe gets wide lines instead of folded cells."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 160)


def plain(text: str) -> str:
    """Keep rich from reading markup out of others' text."""
    return text.replace("[", "\\[")


def _url_of_settings(config: Path | None) -> str:
    """Read only host and port: a command that speaks HTTP need not import core for them."""
    import tomllib

    file = config or Path(os.environ.get("STREAMFOLD_CONFIG", "streamfold.toml"))
    serve: dict[str, Any] = {}
    if config is not None and not file.exists():
        raise CliError(f"{file}: no such settings file; write one with `streamfold init`", USAGE)
    if file.exists():
        try:
            serve = tomllib.loads(file.read_text("utf-8")).get("serve", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CliError(f"{file}: not valid TOML: {error}", USAGE) from error
    host = os.environ.get("STREAMFOLD_SERVE__HOST") or serve.get("host") or "127.0.0.1"
    port = os.environ.get("STREAMFOLD_SERVE__PORT") or serve.get("port") or 8080
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def hoist_globals(arguments: Sequence[str]) -> list[str]:
    """Move global options to the front, so that ``streamfold status --json`` works; nothing after ``--`` is moved."""
    front: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(arguments):
        word = arguments[i]
        if word == "--":
            rest.extend(arguments[i:])
            break
        if word in _FLAGS or (word.partition("=")[0] in _VALUED and "=" in word):
            front.append(word)
        elif word in _VALUED and i + 1 < len(arguments):
            front.extend(arguments[i : i + 2])
            i += 1
        else:
            rest.append(word)
        i += 1
    return front + rest


def report_error(error: CliError, *, as_json: bool) -> int:
    """Say on stderr what went wrong (with ``--json`` also the problem on stdout); return the exit code."""
    if as_json and error.body is not None:
        print(json.dumps(error.body, ensure_ascii=False), flush=True)
    print(f"streamfold: {error}", file=sys.stderr, flush=True)
    return error.exit_code
