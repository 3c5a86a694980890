"""Summarizer ``llm``: what many sentences say of an entity or a relation, in a few, by a language model."""

from __future__ import annotations

from streamfold.core import Backend, InvalidAnswer, Spend
from streamfold.plugins.llm import _prompts as prompts
from streamfold.plugins.llm._client import OPERATIONAL
from streamfold.plugins.llm._helper import Helper, maker

_LONGEST = 2_000


class LLMSummarizer(Helper):
    """Asks a model to sum up."""

    version = prompts.VERSION

    def summarize(self, name: str, sentences: str, spend: Spend) -> str:
        said = self._asked(prompts.summary(name, sentences), spend).get("summary")
        text = " ".join(said.split()).encode("utf-8", "ignore").decode() if isinstance(said, str) else ""
        if not text:
            raise InvalidAnswer(f"model {self.config.model!r} wrote no summary of {name[:80]!r}")
        return text[:_LONGEST]


SUMMARIZER = Backend(
    kind="summarizer",
    name="llm",
    make=maker(LLMSummarizer, "summarizer"),
    doc="Summaries of entities and relations by a language model behind an OpenAI-compatible endpoint.",
    operational=(*OPERATIONAL, "patience_s"),
)
