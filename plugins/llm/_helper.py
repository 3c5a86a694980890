"""What the small backends share: one short question to a model, one JSON object as the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from streamfold.core import Budget, ConfigError, InvalidAnswer, Spend
from streamfold.plugins.llm._client import Client, Messages, make

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
T = TypeVar("T", bound="Helper")


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperConfig:
    """What decides the answers, and how long a question waits for one.

    Parameters
    ----------
    model : name of the model.
    max_tokens : longest answer.
    temperature : of the model.
    patience_s : a question that has waited so long is answered without; what comes later is kept for the next one.
    options, omit : members that a request has besides, or has not, as the server wants it: ``{seed = 1}``,
        ``["temperature"]``.
    """

    model: str
    max_tokens: int = 512
    temperature: float = 0.0
    patience_s: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("llm: name the model")
        if self.patience_s <= 0:
            raise ConfigError(f"llm: patience_s is {self.patience_s}: it must be positive")


class Helper:
    """Asks a model for one JSON object."""

    name = "llm"

    def __init__(self, config: HelperConfig, client: Client) -> None:
        self.config = config
        self.client = client
        self.concurrency = client.how.concurrency
        self.patience_s = config.patience_s
        self.budget: Budget = client.how

    def close(self) -> None:
        self.client.close()

    def _asked(self, messages: Messages, spend: Spend) -> dict[str, Any]:
        """Return the object of an answer. Raises ``InvalidAnswer`` where it has none, or was cut off."""
        config = self.config
        reply = self.client.ask(
            messages,
            spend,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            response_format={"type": "json_object"},
        )
        text = _THINKING.sub("", reply.text)
        try:
            value, _ = json.JSONDecoder().raw_decode(text, max(0, text.find("{")))
        except (ValueError, RecursionError):
            raise InvalidAnswer(f"model {config.model!r}: no JSON object in {text[:120]!r}") from None
        if not isinstance(value, dict):
            raise InvalidAnswer(f"model {config.model!r}: no JSON object in {text[:120]!r}")
        return value


def strings(value: Any, *, most: int, longest: int) -> tuple[str, ...]:
    """Return the distinct words of a list that a model wrote, within bounds."""
    given = value if isinstance(value, list) else []
    found = (" ".join(one.split())[:longest] for one in given if isinstance(one, str))
    return tuple(dict.fromkeys(one.encode("utf-8", "ignore").decode() for one in found if one))[:most]


def maker(kind: type[T], what: str) -> Callable[[Mapping[str, Any]], T]:
    """Return ``Backend.make`` of a kind of backend; ``what``: its table in the settings."""

    def made(config: Mapping[str, Any]) -> T:
        how, own = make(HelperConfig, what, {"base_url": "", **config})
        return kind(own, Client(how, own.model, options=own.options, omit=own.omit))

    return made
