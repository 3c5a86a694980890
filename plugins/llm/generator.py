"""Generator ``llm``: an answer from a context, citing its passages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamfold.core import Backend, Budget, ConfigError, RetrievedContext, Spend
from streamfold.plugins.llm import _prompts as prompts
from streamfold.plugins.llm._client import OPERATIONAL, Client, make


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """What decides the answers.

    Parameters
    ----------
    model : name of the model.
    max_tokens : longest answer.
    temperature : of the model.
    options, omit : members that a request has besides, or has not, as the server wants it: ``{seed = 1}``,
        ``["temperature"]``.
    """

    model: str
    max_tokens: int = 1024
    temperature: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("llm: name the model")


class LLMGenerator:
    """Asks a model for an answer."""

    name = "llm"
    version = prompts.VERSION

    def __init__(self, config: GeneratorConfig, client: Client) -> None:
        self.config = config
        self.client = client
        self.concurrency = client.how.concurrency
        self.budget: Budget = client.how

    def close(self) -> None:
        self.client.close()

    def stream(self, question: str, context: RetrievedContext, spend: Spend) -> Iterator[str]:
        config = self.config
        asked = prompts.answering(question, context)
        return self.client.stream(asked, spend, max_tokens=config.max_tokens, temperature=config.temperature)


def _make(config: Mapping[str, Any]) -> LLMGenerator:
    how, made = make(GeneratorConfig, "generator", {"base_url": "", **config})
    return LLMGenerator(made, Client(how, made.model, options=made.options, omit=made.omit))


GENERATOR = Backend(
    kind="generator",
    name="llm",
    make=_make,
    doc="Answers by a language model behind an OpenAI-compatible endpoint.",
    operational=OPERATIONAL,
)
