"""Language models through any OpenAI-compatible endpoint: the backends ``llm``.

- ``_client``: chat completions over httpx: timeouts, retries, concurrency, circuit breaker, streams.
- ``_prompts`` and ``_formats``: what is asked, and how the answers are read (LightRAG's tuple and JSON formats).
- ``extractor`` and ``generator``; ``keywords``, ``summarizer`` and ``reranker``, which share ``_helper``.

httpx is imported when the first question is asked.
"""

from streamfold.plugins.llm.extractor import EXTRACTOR, LLMExtractor
from streamfold.plugins.llm.generator import GENERATOR, LLMGenerator
from streamfold.plugins.llm.keywords import KEYWORDS, LLMKeywords
from streamfold.plugins.llm.reranker import RERANKER, LLMReranker
from streamfold.plugins.llm.summarizer import SUMMARIZER, LLMSummarizer

BACKENDS = (EXTRACTOR, GENERATOR, KEYWORDS, RERANKER, SUMMARIZER)

__all__ = [
    "BACKENDS",
    "EXTRACTOR",
    "GENERATOR",
    "KEYWORDS",
    "RERANKER",
    "SUMMARIZER",
    "LLMExtractor",
    "LLMGenerator",
    "LLMKeywords",
    "LLMReranker",
    "LLMSummarizer",
]
