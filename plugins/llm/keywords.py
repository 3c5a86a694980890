"""Keywords ``llm``: LightRAG's high- and low-level keywords of a question, by a language model."""

from __future__ import annotations

from streamfold.core import Backend, InvalidAnswer, Keywords, Spend
from streamfold.plugins.llm import _prompts as prompts
from streamfold.plugins.llm._client import OPERATIONAL
from streamfold.plugins.llm._helper import Helper, maker, strings

_MOST, _LONGEST = 16, 128


class LLMKeywords(Helper):
    """Asks a model for the keywords of a question."""

    version = prompts.VERSION

    def keywords(self, question: str, spend: Spend) -> Keywords:
        said = self._asked(prompts.keywords(question), spend)
        high, low = (
            strings(said.get(name), most=_MOST, longest=_LONGEST)
            for name in ("high_level_keywords", "low_level_keywords")
        )
        if not high and not low:
            raise InvalidAnswer(f"model {self.config.model!r} names no keywords of {question[:80]!r}")
        return Keywords(high=high, low=low)


KEYWORDS = Backend(
    kind="keywords",
    name="llm",
    make=maker(LLMKeywords, "keywords"),
    doc="High- and low-level keywords of a question by a language model behind an OpenAI-compatible endpoint.",
    operational=(*OPERATIONAL, "patience_s"),
)
