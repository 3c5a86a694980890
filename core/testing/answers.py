"""Ask a server everything that its kind can be asked: the same questions always, so that answers can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamfold.core.classifying import Classifier, ClassifyRequest, Target
from streamfold.core.events.types import ACTIONS
from streamfold.core.policy import CandidateRequest, CandidateSource, Retrieval, Retriever
from streamfold.core.recommending import Catalogue, Ranker, RankRequest, SimilarItems
from streamfold.core.testing.streams import id_of

_LATER_US = 1_800_000_000_000_000
Answer = tuple[str, Any]
"""A question as shown to an author, and what was answered."""


def answers(server: Any, *, questions: int = 6, salt: str = "") -> list[Answer]:
    """Ask whatever the server can be asked; nothing for other kinds. ``salt`` makes other users and texts."""
    found: list[Answer] = []
    users = [f"u:{id_of('user', i)}{salt}" for i in range(questions)]
    items = [id_of("item", i) + salt for i in range(questions)]
    if isinstance(server, Catalogue):
        found += _known(server, users, items)
    if isinstance(server, Ranker):
        found += [(f"rank({user!r})", _settled(lambda u=user: _ranked(server, u, items))) for user in users]  # type: ignore[misc]  # mypy does not infer a lambda's default
    if isinstance(server, SimilarItems):
        found += [(f"similar({item!r})", _settled(lambda i=item: server.similar(i, 5))) for item in items]  # type: ignore[misc]  # as above
    if isinstance(server, CandidateSource):
        found += _candidates(server, questions, salt)
    if isinstance(server, Classifier):
        found += _classified(server, questions, salt)
    if isinstance(server, Retriever):
        found += _retrieved(server, questions, salt)
    return found


def _candidates(server: CandidateSource, questions: int, salt: str) -> list[Answer]:
    requests = [CandidateRequest(n=n, at_us=_LATER_US) for n in (1, 10, 1000)]
    for i in range(questions):
        seeds = ((id_of("item", i) + salt, 1.0),)
        requests.append(CandidateRequest(n=10, user=f"u:{id_of('user', i)}{salt}", seeds=seeds, at_us=_LATER_US))
        requests.append(CandidateRequest(n=10, category=f"kettle{salt or i}", at_us=_LATER_US))
    return [(f"candidates({one})", _settled(lambda one=one: server.candidates(one))) for one in requests]  # type: ignore[misc]  # mypy does not infer a lambda's default


def _known(server: Catalogue, users: Sequence[str], items: Sequence[str]) -> list[Answer]:
    found: list[Answer] = [
        ("items", _settled(lambda: server.items(items))),
        ("users", _settled(lambda: server.users([user[2:] for user in users]))),
        ("item_page", _settled(lambda: server.item_page(after="", limit=1000))),
        ("user_page", _settled(lambda: server.user_page(after="", limit=1000))),
    ]
    for user in users:
        found.append((f"history({user!r})", _settled(lambda u=user: server.history(u))))  # type: ignore[misc]  # as above
        found.append((f"seen({user!r})", _settled(lambda u=user: server.seen(u, items, ACTIONS).tolist())))  # type: ignore[misc]  # as above
        found.append((f"tokens({user!r})", _settled(lambda u=user: server.tokens(u, items))))  # type: ignore[misc]  # as above
    return found


def _ranked(server: Ranker, user: str, items: Sequence[str]) -> Any:
    ranking = server.rank(RankRequest(user=user, item_ids=items, at_us=_LATER_US, explain=True))
    return ranking.scores.tolist(), ranking.known.tolist(), ranking.features


def _classified(server: Classifier, questions: int, salt: str) -> list[Answer]:
    found: list[Answer] = [("heads", _settled(server.heads))]
    targets = [Target(text=f"kettle lamp {salt}{i}") for i in range(questions)]
    targets += [Target(document_id=id_of("document", i)) for i in range(questions)]
    targets += [Target(features={"size": 1.0 + i, "year": 2.0}) for i in range(questions)]
    for head in ("topic", "spam"):
        for target in targets:
            request = ClassifyRequest(head=head, targets=[target], explain=True)
            found.append((f"classify({head!r}, {target})", _settled(lambda r=request: server.classify(r))))  # type: ignore[misc]  # as above
    return found


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
