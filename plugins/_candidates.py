"""Which names may be one entity: by normal form, by acronym, by what they look like and the company they keep.

Looked for among the names in the passages that name an entity and in those that name its neighbours, and among its own
name with and without titles and legal forms, so the cost does not grow with the store. A suggestion is accepted by an
``entity.merged`` event, and taken back by its undoing; with ``merges = "auto"`` the service sends that of sure ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from streamfold.core import STOP_WORDS, MergeCandidate
from streamfold.plugins._facts import Facts
from streamfold.plugins._names import short_name

_LEGAL = frozenset("inc incorporated ltd limited llc corp corporation company co gmbh ag sa plc nv bv ab oy".split())  # noqa: SIM905
_TITLES = frozenset("the mr mrs ms miss dr sir dame prof professor lord lady saint st president king queen".split())  # noqa: SIM905
_NEIGHBOURS = 12
"""Of an entity, whose passages are looked at too."""
_LEAST_SHARED = 3
_LEAST_OVERLAP = 0.5
_LEAST_ALIKE, _OVERLAP_OF_ALIKE = 0.7, 0.2
"""Names whose embeddings are so near (cosine) need share less company."""


def normal_form(key: str) -> str:
    """Return a name without titles, legal forms and a plural's s.

    >>> normal_form("the acme widgets inc")
    'acme widget'
    """
    words = key.split(" ")
    while len(words) > 1 and words[0] in _TITLES:
        words = words[1:]
    while len(words) > 1 and words[-1] in _LEGAL:
        words = words[:-1]
    last = words[-1]
    if len(last) > 4 and last.endswith("s") and not last.endswith("ss"):
        words = [*words[:-1], last[:-1]]
    return " ".join(words)


def variants(key: str) -> Iterator[str]:
    """Yield names with the same normal form: with a title, a legal form, a plural's s, and without any.

    >>> list(variants("acme inc"))[:4]
    ['acme', 'acmes', 'the acme', 'dr acme']
    """
    bare = normal_form(key)
    yield bare
    yield bare + "s"
    for before in sorted(_TITLES, key=lambda word: (word != "the", len(word), word)):
        yield f"{before} {bare}"
    for after in sorted(_LEGAL):
        yield f"{bare} {after}"


def acronym(key: str) -> str | None:
    """Return the initials of a name of three words or more, small words apart.

    >>> acronym("international business machines")
    'ibm'
    """
    words = [word for word in key.split(" ") if word not in STOP_WORDS]
    return "".join(word[0] for word in words) if len(words) >= 3 else None


def merge_candidates(facts: Facts, key: str, most: int = 10) -> list[MergeCandidate]:
    """Return the names that may be the same entity as ``key``, the surest first."""
    near = [end for fact in facts.around(key) for end in fact.ends if end != key]
    neighbours = list(dict.fromkeys(near))
    together = Counter(facts.names_around(key))
    around = Counter(name for one in neighbours[:_NEIGHBOURS] for name in set(facts.names_around(one)))
    on = facts.on
    spelled = on.who.canonical_many([one for one in variants(key) if "e:" + one in on.graph and on.is_name(one)])
    apart = sorted({*together, *around, *spelled} - {key, *neighbours})
    found = {other: why for other in apart if (why := _same(key, other)) is not None}
    found |= _by_company(facts, key, [o for o in apart if o not in found and around[o] >= _LEAST_SHARED], neighbours)
    ranked = sorted(found.items(), key=lambda one: (-one[1][1], one[0]))[:most]
    return [MergeCandidate(entity_id=other, reason=reason, score=score) for other, (reason, score) in ranked]


def _same(key: str, other: str) -> tuple[str, float] | None:
    if normal_form(key) == normal_form(other):
        return "normal form", 1.0
    if other == acronym(key) or key == acronym(other):
        return "acronym", 0.9
    if short_name(key) == other or short_name(other) == key:
        return "short name", 0.8
    return None


def _by_company(
    facts: Facts, key: str, others: Sequence[str], neighbours: Iterable[str]
) -> dict[str, tuple[str, float]]:
    """Names that are related to the same entities, or to some of them and look alike to the encoder."""
    if not others:
        return {}
    mine = set(neighbours)
    vectors = facts.on.view.tools.encoder.encode([key, *others])
    found: dict[str, tuple[str, float]] = {}
    for other, alike in zip(others, (vectors[1:] @ vectors[0]).tolist(), strict=True):
        theirs = {end for fact in facts.around(other) for end in fact.ends if end != other}
        overlap = len(mine & theirs) / max(1, len(mine | theirs))
        if overlap >= _LEAST_OVERLAP:
            found[other] = ("neighbours", 0.7 * overlap)
        elif alike >= _LEAST_ALIKE and overlap >= _OVERLAP_OF_ALIKE:
            found[other] = ("embedding", round(0.7 * alike, 4))
    return found
