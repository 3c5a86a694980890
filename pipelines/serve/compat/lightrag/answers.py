"""What stands in ``response``: what a generator writes, or what it would write from.

LightRAG always has a model that writes the answer. Without one the honest answer is what it would have been written
from: the context, as ``only_need_context`` gives it, with ``llm_generated`` false. A client whose own model reads the
response loses nothing by it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING

from streamfold.pipelines.serve.call import Call

if TYPE_CHECKING:
    from streamfold.pipelines.serve.compat.lightrag.asking import Found, Question

NO_CONTEXT = "Sorry, I'm not able to provide an answer to that question.[no-context]"
_NO_MODEL = "No generator is configured: mode 'bypass' asks a model alone. Use another mode to get the context."
_FACTS = "Knowledge Graph Data ({what}):\n\n```json\n{lines}\n```\n\n"
_CHUNKS = (
    "Document Chunks (Each entry has a reference_id refer to the `Reference Document List`; the optional "
    "`content_headings` field gives the chunk's heading path within its source document, e.g. `Section 1 → Subsection "
    "1.2`):\n\n```json\n{chunks}\n```\n\nReference Document List (Each entry starts with a [reference_id] that "
    "corresponds to entries in the Document Chunks):\n\n```\n{references}\n```\n\n"
)


async def answered(call: Call, body: Question, found: Found) -> tuple[AsyncIterator[str], bool]:
    """Return the answer's text in pieces, and whether a model writes it.

    Where a generator is configured, and neither ``only_need_context`` nor ``only_need_prompt`` is asked for, it writes
    from what was found; ``bypass`` has it write without. It may raise ``NoAnswer``. Not passed on to it:
    ``user_prompt``, ``response_type``, ``conversation_history``.
    """
    answers = call.service.answers
    generates = answers.is_configured and not (body.only_need_context or body.only_need_prompt)
    if body.mode == "bypass" and not generates:
        return _whole(_NO_MODEL), False
    if found.is_empty and body.mode != "bypass":
        return _whole(NO_CONTEXT), False
    if generates:
        return answers.pieces(call.workspace, body.query, found.context), True
    text = context_text(found)
    if body.only_need_prompt and not body.only_need_context:
        text = f"{text}\n\n---User Query---\n\n{body.query}"
    return _whole(text), False


async def _whole(text: str) -> AsyncIterator[str]:
    yield text


def context_text(found: Found) -> str:
    """Write the context as LightRAG does: JSON lines in fenced blocks, and the list of references."""
    entities = _lines(
        {"entity": one.name, "type": one.type or "UNKNOWN", "description": one.description} for one in found.entities
    )
    relations = _lines(
        {"entity1": one.source, "entity2": one.target, "description": one.description} for one in found.relations
    )
    chunks = _lines({"reference_id": one["reference_id"], "content": one["content"]} for one in found.chunks)
    references = "\n".join(f"[{one['reference_id']}] {one['file_path']}" for one in found.references)
    facts = _FACTS.format(what="Entity", lines=entities) + _FACTS.format(what="Relationship", lines=relations)
    shown = "" if found.mode == "naive" else facts
    return "\n" + shown + _CHUNKS.format(chunks=chunks, references=references)


def _lines(rows: Iterable[Mapping[str, str]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
