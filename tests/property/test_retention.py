"""Whatever leaves the log, whenever: what can be folded afresh gives what folding everything gave."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from streamfold.core import Event, EventError, Policy, Stores, Subject, Table
from streamfold.core.errors import OutOfReach
from streamfold.core.fold import verify_group, versions
from streamfold.core.fold.retention import Keeper
from streamfold.core.testing import World, plugin
from streamfold.plugins import builtin

DOCUMENTS = st.sampled_from(["doc-a", "doc-b", "doc-c"])
USERS = st.sampled_from(["user-anna", "user-bert"])


class Newest(Policy):
    """The title and text of each document: needs the newest upsert, and patches since."""

    name, version = "newest", 1
    handles = ("document.upserted", "document.patched", "document.deleted", "document.erased")
    newest_suffices = True
    stores = (Table("texts", value=str), Table("titles", value=str))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        key = event.subject.id
        if event.type == "document.upserted":
            stores["texts"].put(key, event.data.text)
            stores["titles"].put(key, "")
        elif event.type == "document.patched":
            if stores["texts"].get(key) is None:
                raise EventError("nothing to patch")
            stores["titles"].put(key, event.data.title)
        else:
            stores["texts"].delete(key)
            stores["titles"].delete(key)

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        stores["texts"].delete(subject.id)
        stores["titles"].delete(subject.id)


class Counts(Policy):
    """Counts clicks by user, and how often each document was said: needs everything."""

    name, version, handles = "counts", 1, ("interaction.observed", "document.upserted")
    stores = (Table("clicks", value=int), Table("said", value=int))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        table, key = ("said", event.subject.id) if event.type[0] == "d" else ("clicks", event.data.user_id)
        stores[table].put(key, stores[table].get(key, 0) + 1)


class Life(RuleBasedStateMachine):
    """Appends, folds, lets go, crashes, sets back, rebuilds, erases; time goes on between."""

    @initialize(
        archive=st.booleans(),
        compact=st.booleans(),
        keep_s=st.sampled_from([0, 3, 12]),
        young_s=st.sampled_from([0, 4]),
    )
    def start(self, archive: bool, compact: bool, keep_s: int, young_s: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.archive = archive
        retention = {"archive": archive, "compact": compact, "keep_s": keep_s, "compact_after_s": young_s}
        self.world = World(
            Path(self.folder.name), [plugin([Newest, Counts])], {"newest": {}, "counts": {}},
            fold={"batch_events": 5, "max_skips": 10_000}, settings={"retention": retention | {"dedup_window_s": 0}},
        )  # fmt: skip
        self.texts: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        self.said: Counter[str] = Counter()
        self.clicks: Counter[str] = Counter()
        self.sent = 0

    def _send(self, type_: str, **data: Any) -> None:
        self.sent += 1
        assert self.world.send(type_, data, id=f"id{self.sent}").outcomes == ["accepted"]

    @rule(names=st.lists(DOCUMENTS, min_size=1, max_size=4))
    def upsert(self, names: list[str]) -> None:
        self.world.clock.advance(1)
        for name in names:
            self.texts[name] = f"what version {self.sent} of {name} says"
            self.titles[name] = ""
            self.said[name] += 1
            self._send("document.upserted", document_id=name, text=self.texts[name])

    @rule(name=DOCUMENTS)
    def patch(self, name: str) -> None:
        title = f"Title {self.sent}"
        if name in self.texts:
            self.titles[name] = title
        self._send("document.patched", document_id=name, title=title)

    @rule(name=DOCUMENTS)
    def delete(self, name: str) -> None:
        self.texts.pop(name, None)
        self.titles.pop(name, None)
        self._send("document.deleted", document_id=name)

    @rule(users=st.lists(USERS, min_size=1, max_size=4))
    def click(self, users: list[str]) -> None:
        self.world.clock.advance(1)
        for user in users:
            self.clicks[user] += 1
            self._send("interaction.observed", user_id=user, item_id="i", action="click")

    @rule(seconds=st.integers(1, 9))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def fold(self) -> None:
        self.world.fold()

    @rule(fold=st.booleans())
    def let_go(self, fold: bool) -> None:
        if fold:
            self.world.fold()
        self.world.ledger.ask_retention("default", actor="test", at_us=self.world.clock.now_us() + 1)
        Keeper(self.world.context, (self.world.runner,)).run("default")

    @rule()
    def crash(self) -> None:
        self.world.forget_warm()

    @rule(policy=st.sampled_from(["newest", "counts"]))
    def set_back(self, policy: str) -> None:
        if self._reach(policy) != "impossible":
            self.world.ledger.reset_group("default", self.world.group(policy).name, watermark=0)
            self.world.forget_warm()

    @rule(policy=st.sampled_from(["newest", "counts"]))
    def rebuild(self, policy: str) -> None:
        self.world.fold()
        possible = self._reach(policy) != "impossible"
        try:
            versions.rebuild(self.world.context, "default", self.world.group(policy), actor="me", reason="test")
        except OutOfReach:
            assert not possible
        else:
            assert possible
            self.world.fold()

    @precondition(lambda self: self.archive)
    @rule(kind=st.sampled_from(["user", "document"]), user=USERS, name=DOCUMENTS)
    def erase(self, kind: str, user: str, name: str) -> None:
        self.world.clock.advance(1)
        if kind == "user":
            del self.clicks[user]
        else:
            del self.said[name]
            self.texts.pop(name, None)
            self.titles.pop(name, None)
        self._send(f"{kind}.erased", **{f"{kind}_id": user if kind == "user" else name})
        self.world.erase()
        gone = user if kind == "user" else name
        left = [f for f in Path(self.folder.name).rglob("*") if f.is_file() and gone.encode() in f.read_bytes()]
        assert not left, f"{gone} is left in {left}"

    def _reach(self, policy: str) -> str:
        return self.world.context.reach("default", self.world.group(policy)).rebuild

    @rule()
    def check(self) -> None:
        world = self.world
        world.fold()
        assert dict(world.store("newest", "texts").items()) == self.texts
        assert dict(world.store("newest", "titles").items()) == self.titles
        assert dict(world.store("counts", "said").items()) == dict(self.said)
        assert dict(world.store("counts", "clicks").items()) == dict(self.clicks)
        for policy in ("newest", "counts"):
            if self.archive:
                assert self._reach(policy) == "exact"
            if self._reach(policy) != "impossible":
                verdict = verify_group(world.context, "default", world.group(policy))
                assert verdict.equal, verdict.differences

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.let_go(True)
            self.check()
        finally:
            self.world.close()
            self.folder.cleanup()


Life.TestCase.settings = settings(
    max_examples=25, stateful_step_count=18, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase


# -- the policies that say that a compacted log is enough --------------------------------------------------------------
WORDS = ["Ada Lovelace", "the Analytical Engine", "London", "paris", "a kettle", "Charles Babbage", "wrote", "visited"]


@pytest.mark.parametrize("policy", ["vector_index"])
@pytest.mark.parametrize("seed", range(4))
def test_built_in_policies_fold_the_same_from_a_compacted_log(tmp_path: Path, policy: str, seed: int) -> None:
    random = Random(seed)
    backends = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
    retention = {"keep_s": 40, "compact": True, "compact_after_s": 5, "archive": False}
    with World(tmp_path, [builtin], {policy: {}}, backends=backends, settings={"retention": retention}) as world:
        for step in range(120):
            world.clock.advance(1)
            document = {"document_id": f"d{random.randrange(8)}"}
            kind = random.choice(["upserted", "upserted", "upserted", "patched", "deleted"])
            if kind == "upserted":
                sentences = [" ".join(random.choices(WORDS, k=6)).capitalize() for _ in range(random.randrange(1, 9))]
                document |= {"text": ". ".join(sentences) + ".", "title": random.choice(["", "Ada Lovelace", "London"])}
            elif kind == "patched":
                document |= {"title": random.choice(WORDS), "metadata": {"step": str(step)}}
            world.send(f"document.{kind}", document)
            if step % 40 == 39:
                world.fold()
                report = Keeper(world.context, (world.runner,)).run("default")
                assert report is not None
                world.clock.advance(86_400)
        group = world.group(policy)
        left = sum(departure.events for departure in world.ledger.departures("default"))
        assert left > 60
        assert world.context.reach("default", group).rebuild == "compacted"
        verdict = verify_group(world.context, "default", group)
        assert verdict.equal, verdict.differences
        assert verdict.events < 60
