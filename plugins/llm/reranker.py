"""Reranker ``llm``: how well each passage answers a question, by a language model, all in one call."""

from __future__ import annotations

from collections.abc import Sequence

from streamfold.core import Backend, InvalidAnswer, Spend
from streamfold.plugins.llm import _prompts as prompts
from streamfold.plugins.llm._client import OPERATIONAL
from streamfold.plugins.llm._helper import Helper, maker


class LLMReranker(Helper):
    """Asks a model to grade passages."""

    version = prompts.VERSION

    def rerank(self, question: str, passages: Sequence[str], spend: Spend) -> list[float]:
        said = self._asked(prompts.reranking(question, passages), spend).get("scores")
        given = said if isinstance(said, list) else []
        scores = [float(one) for one in given if type(one) in (int, float) and 0 <= one <= 10]
        if len(scores) != len(passages) or len(given) != len(passages):
            raise InvalidAnswer(f"model {self.config.model!r} gave {len(scores)} scores for {len(passages)} passages")
        return [score / 10 for score in scores]


RERANKER = Backend(
    kind="reranker",
    name="llm",
    make=maker(LLMReranker, "reranker"),
    doc="How well passages answer a question, by a language model behind an OpenAI-compatible endpoint.",
    operational=(*OPERATIONAL, "patience_s"),
)
