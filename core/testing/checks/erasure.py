"""``forget`` leaves nothing of a subject, or asks for a rebuild."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from streamfold.core.errors import NeedsRebuild
from streamfold.core.events import Event, Subject
from streamfold.core.testing.lab import Bench, CheckFailed, Lab, difference, needs
from streamfold.core.testing.streams import Given

_PER_KIND = 3


def check_forget(lab: Lab) -> None:
    """After ``forget`` no store holds a byte of the subject, and all is as if its events had never come."""
    events = lab.logged(_marked(lab.given(48, seed=3)))
    for subject, mine in _subjects(lab, events):
        bench = lab.bench().run(events)
        before = bench.contents()
        try:
            bench.forget(subject, mine)
        except NeedsRebuild:
            found = difference(bench.contents(), before)
            needs(not found, f"forget asked for a rebuild, but changed the stores first ({found})")
            continue
        except Exception as error:
            raise CheckFailed(
                f"forget of {subject.kind} {subject.id!r} raised {type(error).__name__}: {error}. Rows may be missing "
                "already; raise NeedsRebuild where a subject cannot be taken out exactly"
            ) from error
        if (residue := _residue(bench, subject)) is not None:
            store, what = residue
            raise CheckFailed(
                f"after forget, store {store!r} still holds {what} of {subject.kind} {subject.id!r}: delete every row "
                "that names it, or raise NeedsRebuild"
            )
        never = lab.bench().run([event for event in events if event not in mine])
        found = difference(bench.contents(), never.contents())
        needs(
            not found,
            f"after forget of {subject.kind} {subject.id!r} the stores differ from those of a fold without its events "
            f"({found}): take out all that its {len(mine)} events put in, or raise NeedsRebuild (which is what "
            "inheriting forget does)",
        )


def _subjects(lab: Lab, events: Sequence[Event]) -> list[tuple[Subject, list[Event]]]:
    """The first few subjects of each kind, with all events that concern them."""
    types = lab.base().registry.event_types
    concerned: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        for subject in types.get(event.type).subjects(event.data):
            concerned.setdefault((subject.kind, subject.id), []).append(event)
    taken: dict[str, int] = {}
    found = []
    for (kind, id_), mine in concerned.items():
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= _PER_KIND:
            found.append((Subject(kind, id_), mine))
    return found


def _marked(given: Sequence[Given]) -> list[Given]:
    """Put a word into each text that no other subject's texts hold, so that its bytes can be searched for."""
    found = []
    for type_, data in given:
        ids = [value for name, value in data.items() if name.endswith("_id")]
        word = f" {_mark(ids[0])}" if ids else ""
        found.append((type_, {k: v + word if k in ("text", "title") else v for k, v in data.items()}))
    return found


def _mark(subject_id: str) -> str:
    return "zq" + str(int.from_bytes(blake2b(subject_id.encode(), digest_size=6).digest(), "big"))


def _residue(bench: Bench, subject: Subject) -> tuple[str, str] | None:
    """Name the store whose files hold the subject's id, or a word that only its texts held."""
    sought = {"the id": subject.id.encode(), "a word of a text": _mark(subject.id).encode()}
    for name, store in bench.view.by_runtime[bench.runtime.key].items():
        with tempfile.TemporaryDirectory(prefix="streamfold-kit-") as folder:
            store.save(Path(folder))
            files = [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]
        for what, data in sought.items():
            if any(data in file for file in files):
                return name, what
    return None
