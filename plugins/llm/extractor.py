"""Extractor ``llm``: entities and relations of a passage, in LightRAG's formats.

A passage costs one call, and one more for each gleaning. An answer that cannot be read is asked for again,
``attempts`` times in all; then the passage is given up (``InvalidAnswer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamfold.core import Backend, Budget, ConfigError, Extraction, InvalidAnswer, Passage, Spend, Usage
from streamfold.plugins.llm import _prompts as prompts
from streamfold.plugins.llm._client import CHARACTERS_PER_TOKEN, OPERATIONAL, Client, make
from streamfold.plugins.llm._formats import Unreadable, merged, read_answer

_TOKENS_OUT = 0.8
"""An answer's tokens against its passage's, for estimates: measured on LightRAG's own examples it is about as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorConfig:
    """What decides the findings.

    Parameters
    ----------
    model : name of the model.
    format : ``tuple`` (LightRAG's) or ``json``.
    gleaning : how often it is asked what it missed.
    entity_types, language : as the prompt names them.
    max_tokens : longest answer; longer ones are cut and read as far as they go.
    temperature : of the model.
    attempts : how often it is asked until an answer can be read.
    options, omit : members that a request has besides, or has not, as the server wants it: ``{seed = 1}``,
        ``["temperature"]``.
    """

    model: str
    format: Literal["tuple", "json"] = "tuple"
    gleaning: int = 0
    entity_types: tuple[str, ...] = prompts.ENTITY_TYPES
    language: str = "the language of the text"
    max_tokens: int = 4096
    temperature: float = 0.0
    attempts: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("llm: name the model")
        if not 0 <= self.gleaning <= 5:
            raise ConfigError(f"llm: gleaning is {self.gleaning}: it must be in 0..5")
        if self.attempts < 1:
            raise ConfigError(f"llm: attempts is {self.attempts}: it must be at least 1")


class LLMExtractor:
    """Asks a model what a passage says of whom."""

    name = "llm"
    version = prompts.VERSION
    asks = True

    def __init__(self, config: ExtractorConfig, client: Client) -> None:
        self.config = config
        self.client = client
        self.concurrency = client.how.concurrency
        self.budget: Budget = client.how

    def extract(self, passage: Passage, spend: Spend) -> Extraction:
        asked = self._messages(passage)
        said, found = self._answered(asked, spend)
        for _ in range(self.config.gleaning):
            asked = prompts.gleaning(asked, said, format=self.config.format)
            said, more = self._answered(asked, spend)
            if not more.entities and not more.relations:
                break
            found = merged(found, more)
        return found

    def close(self) -> None:
        self.client.close()

    def estimate(self, passage: Passage) -> tuple[int, Usage]:
        asked = sum(len(one["content"]) for one in self._messages(passage)) // CHARACTERS_PER_TOKEN
        answered = round(len(passage.text) * _TOKENS_OUT / CHARACTERS_PER_TOKEN) + 1
        calls = 1 + self.config.gleaning
        tokens_in = sum(asked + i * answered for i in range(calls))
        return calls, Usage(tokens_in=tokens_in, tokens_out=calls * answered)

    def _messages(self, passage: Passage) -> list[dict[str, str]]:
        config = self.config
        return prompts.extraction(
            passage.text, passage.title, format=config.format, types=config.entity_types, language=config.language
        )

    def _answered(self, asked: list[dict[str, str]], spend: Spend) -> tuple[str, Extraction]:
        """Ask until the answer can be read."""
        options: dict[str, Any] = {"max_tokens": self.config.max_tokens, "temperature": self.config.temperature}
        if self.config.format == "json":
            options["response_format"] = {"type": "json_object"}
        last = ""
        for _ in range(self.config.attempts):
            reply = self.client.ask(asked, spend, **options)
            try:
                return reply.text, read_answer(reply.text, self.config.format, cut=reply.cut)
            except Unreadable as error:
                last = f"{error}; it begins with {reply.text[:120]!r}"
        raise InvalidAnswer(f"model {self.config.model!r}: {self.config.attempts} answers cannot be read: {last}")


def _make(config: Mapping[str, Any]) -> LLMExtractor:
    how, made = make(ExtractorConfig, "extractor", {"base_url": "", **config})
    return LLMExtractor(made, Client(how, made.model, options=made.options, omit=made.omit))


EXTRACTOR = Backend(
    kind="extractor",
    name="llm",
    make=_make,
    doc="Entities and relations by a language model behind an OpenAI-compatible endpoint.",
    operational=(*OPERATIONAL, "attempts"),
)
