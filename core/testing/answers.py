"""Ask a server everything that its kind can be asked: the same questions always, so that answers can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamfold.core.policy import CandidateRequest, CandidateSource, Retrieval, Retriever
from streamfold.core.testing.streams import id_of

_LATER_US = 1_800_000_000_000_000
Answer = tuple[str, Any]
"""A question as shown to an author, and what was answered."""


def answers(server: Any, *, questions: int = 6, salt: str = "") -> list[Answer]:
    """Ask a Retriever or a CandidateSource; nothing for other kinds. ``salt`` makes other users and texts."""
    found: list[Answer] = []
    if isinstance(server, CandidateSource):
        found += _candidates(server, questions, salt)
    if isinstance(server, Retriever):
        found += _retrieved(server, questions, salt)
    return found


def _candidates(server: CandidateSource, questions: int, salt: str) -> list[Answer]:
    requests = [CandidateRequest(n=n, at_us=_LATER_US) for n in (1, 10, 1000)]
    for i in range(questions):
        requests.append(CandidateRequest(n=10, user_id=id_of("user", i) + salt, at_us=_LATER_US))
        requests.append(CandidateRequest(n=10, category=f"kettle{salt or i}", at_us=_LATER_US))
    return [(f"candidates({one})", _settled(lambda one=one: server.candidates(one))) for one in requests]  # type: ignore[misc]  # mypy does not infer a lambda's default


def _retrieved(server: Retriever, questions: int, salt: str) -> list[Answer]:
    texts = ["kettle lamp garden", "river", "", *(f"paris {salt}{i}" for i in range(questions))]
    found = [
        (f"retrieve({text!r}, {mode!r})", _settled(lambda t=text, m=mode: server.retrieve(Retrieval(query=t, mode=m))))  # type: ignore[misc]  # as above
        for text in texts
        for mode in server.modes
    ]
    found.append(("documents", _settled(lambda: server.documents(after="", limit=1000))))
    for i in range(questions):
        name = id_of("document", i) + salt
        found.append((f"document({name!r})", _settled(lambda n=name: server.document(n))))  # type: ignore[misc]  # as above
    return found


def _settled(ask: Callable[[], Any]) -> Any:
    """The answer; a refused question (ValueError becomes 422) is an answer too."""
    try:
        return ask()
    except ValueError as error:
        return f"refused: {error}"
