"""Language models through any OpenAI-compatible endpoint: the backends ``llm`` of kind extractor and generator.

- ``_client``: chat completions over httpx: timeouts, retries, concurrency, circuit breaker, streams.
- ``_prompts`` and ``_formats``: what is asked, and how the answers are read (LightRAG's tuple and JSON formats).
- ``extractor`` and ``generator``: the backends.

httpx is imported when the first question is asked.
"""

from streamfold.plugins.llm.extractor import EXTRACTOR, LLMExtractor
from streamfold.plugins.llm.generator import GENERATOR, LLMGenerator

__all__ = ["EXTRACTOR", "GENERATOR", "LLMExtractor", "LLMGenerator"]
