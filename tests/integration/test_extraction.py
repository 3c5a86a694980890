"""Extraction by a language model: from a document to entities in answers, through whatever the model's server does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Retrieval
from streamfold.core.clock import US
from streamfold.core.events import Event
from streamfold.core.fold import Extracting
from streamfold.core.fold.estimate import estimate
from streamfold.core.ledger.abc import LogRow
from streamfold.core.testing.model_server import ModelServer, claims
from streamfold.core.testing.world import World
from streamfold.plugins import builtin
from tests.waiting import until

ALL = ("chunks", "entities", "relations")
ADA = "Ada Byron works at Acme Works. Ada Byron lives in London."
BEN = "Ben Cole founded Beta Labs."


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


class Extractions:
    """A world with an extractor, driven by hand."""

    def __init__(self, folder: Path, model: ModelServer, config: dict[str, Any], **extractor: Any) -> None:
        self.model = model
        self._folder = folder
        self._config = config
        self._extractor = {
            "use": "llm",
            "base_url": model.url,
            "model": "m",
            "retries": 0,
            "concurrency": 2,
            **extractor,
        }
        self._owners = (f"w{n}" for n in itertools.count())
        self.world = self.open()
        self.extracting = Extracting(self.world.context, on_append=lambda workspace: None)

    def open(self, **more: Any) -> World:
        backends = {
            "encoder": {"use": "hashing"},
            "chunker": {"use": "sentences", "max_tokens": 12},
            "extractor": self._extractor,
        }
        return World(
            self._folder, [builtin], {"graph_index": self._config}, backends=backends, owner=next(self._owners), **more
        )

    def put(self, id_: str, text: str, **more: Any) -> int:
        done = self.world.send("document.upserted", {"document_id": id_, "text": text, **more})
        return done.positions[0]

    def extract(self) -> None:
        """Go on until nothing is left to do now."""
        for _ in range(50):
            if not self.extracting.run("default"):
                return
        raise AssertionError("extraction did not come to rest")

    def again(self) -> None:
        """Forget pauses, as if their time had passed."""
        self.extracting._until.clear()
        self.extract()

    def settle(self) -> None:
        self.extract()
        self.world.fold()

    @property
    def extracted(self) -> list[Event]:
        decode = self.world.registry.event_types.decode
        return [decode(row) for row in self.rows("document.extracted")]

    def rows(self, type_: str) -> list[LogRow]:
        return self.world.ledger.read("default", 0, 1000, types=[type_]).rows

    def ask(self, query: str, **more: Any) -> Any:
        server = self.world.view.member("graph_index").server
        return server.context(Retrieval(query=query, mode="mix", include=ALL, **more))

    def letters(self) -> list[Any]:
        return self.world.ledger.dead_letters("default")


Make = Callable[..., Extractions]


@pytest.fixture
def make(tmp_path: Path, model: ModelServer) -> Iterator[Make]:
    made: list[Extractions] = []

    def open_one(config: dict[str, Any] | None = None, **extractor: Any) -> Extractions:
        made.append(Extractions(tmp_path / str(len(made)), model, config or {}, **extractor))
        return made[-1]

    yield open_one
    for one in made:
        one.extracting.stop()
        one.world.close()


def told(context: Any, id_: str) -> Any:
    return next(one for one in context.relations if one.relation_id == id_)


@pytest.mark.parametrize("format", ["tuple", "json"])
def test_what_the_model_told_is_served_beside_what_was_found_offline(make: Make, format: str) -> None:
    one = make(format=format)
    one.put("ada", ADA, title="Ada")
    one.world.fold()
    assert all(entity.type is None for entity in one.ask("Where does Ada Byron work?").entities)
    one.settle()
    found = one.ask("Where does Ada Byron work?")
    ada = next(entity for entity in found.entities if entity.entity_id == "ada byron")
    assert (ada.type, ada.description) == ("Person", "Ada Byron as the text tells.")
    relation = told(found, "acme works|ada byron")
    assert (relation.source, relation.target) == ("Ada Byron", "Acme Works")
    assert (relation.keywords, relation.description) == (("works at",), "Ada Byron works at Acme Works.")
    assert len(one.model.requests) == 1, "one call a chunk"
    assert one.world.verify()[one.world.group("graph_index").name].equal


def test_entities_in_lower_case_are_names_where_the_model_says_so(make: Make, model: ModelServer) -> None:
    model.model = lambda messages: "entity<|#|>photosynthesis<|#|>Concept<|#|>How leaves eat light.\n<|COMPLETE|>"
    one = make()
    one.put("d", "Leaves need photosynthesis to live.")
    one.settle()
    (entity,) = [e for e in one.ask("what is photosynthesis").entities if e.entity_id == "photosynthesis"]
    assert (entity.type, entity.description) == ("Concept", "How leaves eat light.")


def test_an_update_asks_about_changed_chunks_alone_and_nothing_of_the_old_stays(make: Make) -> None:
    one = make()
    filler = "Nothing of interest is written in this long sentence at all, really."
    one.put("ada", f"{ADA} {filler} Cid Dole works at Delta Inc.")
    one.settle()
    asked = len(one.model.texts)
    assert asked > 1
    assert told(one.ask("Cid Dole"), "cid dole|delta inc")
    one.put("ada", f"{ADA} {filler} Cid Dole works at Epsilon Inc.")
    one.settle()
    fresh = one.model.texts[asked:]
    assert len(fresh) == 1, "one chunk changed"
    assert "Epsilon" in fresh[0]
    assert len(one.extracted) == asked + 1, "the log does not repeat what is known"
    found = one.ask("Cid Dole")
    assert told(found, "cid dole|epsilon inc")
    assert "delta" not in repr(found).lower()
    one.world.send("document.deleted", {"document_id": "ada"})
    one.settle()
    assert not one.ask("Cid Dole").entities
    assert len(one.model.texts) == asked + 1


def test_a_text_that_comes_back_is_extracted_again_without_asking(make: Make) -> None:
    one = make()
    for text in (ADA, BEN, ADA):
        one.put("d", text)
        one.settle()
    assert len(one.model.requests) == 2
    assert told(one.ask("Ada Byron"), "acme works|ada byron").keywords == ("works at",)
    one.put("d", ADA)
    one.put("d", BEN)
    one.put("d", ADA)
    one.settle()
    assert len(one.model.requests) == 2
    assert told(one.ask("Ada Byron"), "acme works|ada byron").keywords == ("works at",)


def test_a_rebuild_and_another_process_ask_nothing_again(make: Make) -> None:
    one = make()
    for number in range(5):
        one.put(f"d{number}", f"Person {chr(65 + number)}x works at Acme Works.")
    one.settle()
    asked, logged = len(one.model.requests), len(one.extracted)
    assert (asked, logged) == (5, 5)
    again = Extracting(one.world.context, on_append=lambda workspace: None)
    while again.run("default"):
        pass
    other = World(
        one._folder, [builtin], {"graph_index": {"hop_weight": 1.0}}, ledger=one.world.ledger, owner="other",
        backends={
            "encoder": {"use": "hashing"}, "chunker": {"use": "sentences", "max_tokens": 12},
            "extractor": one._extractor,
        },
    )  # fmt: skip
    other.fold()
    two = Extracting(other.context, on_append=lambda workspace: None)
    while two.run("default"):
        pass
    other.fold()
    assert len(one.model.requests) == asked
    assert len(one.extracted) == logged
    other.close()


def test_two_workers_double_nothing(make: Make, tmp_path: Path) -> None:
    one = make()
    for number in range(6):
        one.put(f"d{number}", f"Person {chr(65 + number)}x works at Acme Works.")
    second = World(one._folder, [builtin], {"graph_index": {}}, ledger=one.world.ledger, owner="second", backends={
        "encoder": {"use": "hashing"}, "chunker": {"use": "sentences", "max_tokens": 12}, "extractor": one._extractor,
    })  # fmt: skip
    other = Extracting(second.context, on_append=lambda workspace: None)
    for _ in range(10):
        other.run("default")
        one.extracting.run("default")
    assert len(one.extracted) == 6
    assert len(one.model.requests) == 6, "what one has claimed the other leaves alone"
    other.stop()
    second.close()


def test_what_a_process_had_claimed_when_it_died_is_taken_over(make: Make) -> None:
    one = make()
    one.put("ada", ADA)
    [runtime] = one.world.group("graph_index").runtimes
    claimed = one.world.ledger.prepare_claim(
        "default",
        -runtime.instance.instance_id,
        after=0,
        types=("document.upserted",),
        owner="dead",
        now_us=one.world.clock.now_us(),
        ttl_us=3600 * US,
        limit=10,
    )
    assert len(claimed) == 1
    one.extract()
    assert len(one.extracted) == 1


def test_stopping_in_the_midst_loses_nothing(make: Make, model: ModelServer) -> None:
    one = make(concurrency=1)
    stopped = threading.Event()

    def slow(body: Any) -> None:
        if len(model.requests) > 1:
            stopped.wait(60)

    model.always = slow
    for number in range(4):
        one.put(f"d{number}", f"Person {chr(65 + number)}x works at Acme Works.")
    thread = threading.Thread(target=one.extracting.run, args=("default",))
    thread.start()
    until(lambda: len(model.requests) > 1)
    one.extracting.stop()
    stopped.set()
    thread.join()
    assert len(one.extracted) < 4
    again = Extracting(one.world.context, on_append=lambda workspace: None)
    while again.run("default"):
        pass
    assert {event.data.document_id for event in one.extracted} == {f"d{n}" for n in range(4)}
    assert len(one.extracted) == 4
    again.stop()


def test_an_old_input_is_not_folded_and_not_asked_about(make: Make) -> None:
    one = make()
    one.put("d", ADA)
    newer = one.put("d", BEN)
    one.settle()
    assert one.model.texts == [BEN]
    assert {event.data.input_position for event in one.extracted} == {newer}
    stale = one.extracted[0].data
    entity = {"name": "Stale Name", "type": "Person", "description": "d"}
    data = {"document_id": "d", "chunk_hash": stale.chunk_hash, "extractor": "mine", "entities": [entity]}
    one.world.send("document.extracted", {**data, "input_position": newer - 1})
    one.world.send("document.extracted", {**data, "input_position": newer, "chunk_hash": "0" * 16})
    one.world.fold()
    assert not [e for e in one.ask("Stale Name").entities if e.entity_id == "stale name"]
    one.world.send("document.extracted", {**data, "input_position": newer})
    one.world.fold()
    assert [e for e in one.ask("Stale Name").entities if e.entity_id == "stale name"], "anybody may extract"


def test_extractions_of_another_model_of_ours_are_left_alone(make: Make) -> None:
    one = make()
    position = one.put("d", ADA)
    one.settle()
    entity = {"name": "Other Model", "type": "Person", "description": "d"}
    (event,) = one.extracted
    data = {"document_id": "d", "chunk_hash": event.data.chunk_hash, "input_position": position, "entities": [entity]}
    one.world.send("document.extracted", {**data, "extractor": "streamfold/llm:other@00000000"})
    one.world.fold()
    assert not [e for e in one.ask("Other Model").entities if e.entity_id == "other model"]


# -- failures ---------------------------------------------------------------------------------------------------------
def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_given_up(make: Make, model: ModelServer) -> None:
    one = make(attempts=2)
    model.faults.extend([{"text": "I cannot do that."}])
    one.put("ada", ADA)
    one.settle()
    assert (len(model.requests), len(one.extracted), one.letters()) == (2, 1, [])
    model.always = lambda body: {"text": "Sorry."} if "Ben" in body["messages"][1]["content"] else None
    one.put("ben", BEN)
    one.put("cid", "Cid Dole works at Delta Inc.")
    one.settle()
    (letter,) = one.letters()
    assert (letter.stage, letter.code, letter.policy) == ("prepare", "extraction-failed", "graph_index@1")
    assert "Sorry." in letter.detail
    assert {event.data.document_id for event in one.extracted} == {"ada", "cid"}
    assert one.ask("Who founded Beta Labs?").chunks[0].document_id == "ben", "served all the same"


def test_a_server_that_is_down_is_waited_for(make: Make, model: ModelServer) -> None:
    one = make(breaker_failures=100)
    model.always = lambda body: {"status": 500}
    one.put("ada", ADA)
    one.put("ben", BEN)
    for _ in range(8):
        one.again()
    assert (one.extracted, one.letters()) == ([], [])
    one.world.fold()
    assert one.ask("Ada Byron").chunks, "nothing else waits"
    model.always = lambda body: None
    one.again()
    assert {event.data.document_id for event in one.extracted} == {"ada", "ben"}


def test_a_rate_limit_is_waited_out(make: Make, model: ModelServer) -> None:
    one = make()
    model.faults.append({"status": 429, "retry_after": 50})
    one.put("ada", ADA)
    one.extract()
    assert one.extracted == []
    (until,) = one.extracting._until.values()
    one.extract()
    assert len(model.requests) == 1, "nothing is asked before"
    assert until > 0
    one.again()
    assert len(one.extracted) == 1


def test_one_document_at_which_the_server_always_fails_holds_nobody_up(make: Make, model: ModelServer) -> None:
    one = make(concurrency=1, breaker_failures=3, breaker_s=0.01)
    model.always = lambda body: {"status": 500} if "Bad" in body["messages"][1]["content"] else None
    for number in range(6):
        one.put(f"bad{number}", f"Bad Person{number} works at Acme Works.")
    for number in range(4):
        one.put(f"good{number}", f"Good Person{number} works at Acme Works.")
    for round_ in range(30):
        time.sleep(0.02)  # the circuit closes
        one.again()
        one.put(f"more{round_}", f"Later Person{round_} works at Acme Works.")
    for _ in range(10):
        time.sleep(0.02)
        one.again()
    assert {letter.code for letter in one.letters()} == {"extraction-failed"}
    assert len(one.letters()) == 6
    assert len(one.extracted) == 34


def test_a_truncated_answer_gives_what_is_whole_and_a_broken_body_is_asked_again(
    make: Make, model: ModelServer
) -> None:
    one = make(retries=2, backoff_s=0.01)
    whole = claims([{"content": ""}, {"content": f"---Input Text---\n```{ADA}```"}])
    model.faults.extend([{"cut": 100}, {"status": 500}, {"text": whole[:90], "finish_reason": "length"}])
    one.put("ada", ADA)
    one.settle()
    assert len(model.requests) == 3
    (event,) = one.extracted
    assert [entity.name for entity in event.data.entities] == ["Ada Byron"]


def test_a_slow_server_holds_no_fold_up(make: Make, model: ModelServer) -> None:
    one = make(timeout_s=2.0)
    model.always = lambda body: {"delay_s": 4}
    one.put("ada", ADA)
    one.extract()
    one.world.fold()
    assert one.ask("Ada Byron").chunks
    assert one.extracted == []
    model.always = lambda body: None
    one.again()
    assert len(one.extracted) == 1


def test_a_budget_ends_asking_until_the_next_day(make: Make, model: ModelServer) -> None:
    one = make(tokens_per_day=500, concurrency=1)
    for number in range(6):
        one.put(f"d{number}", f"Person {chr(65 + number)}x works at Acme Works.")
    for _ in range(5):
        one.again()
    first = len(model.requests)
    assert 1 <= first < 6
    for _ in range(8):
        one.world.clock.advance(24 * 3600)
        one.again()
    assert len(one.extracted) == 6
    assert one.letters() == [], "to wait for money is no failure of a document"


def test_gleaning_asks_what_was_missed(make: Make, model: ModelServer) -> None:
    missed = "entity<|#|>Great Hall<|#|>Location<|#|>A hall.\n<|COMPLETE|>"
    one = make(gleaning=1)
    model.faults.extend([{}, {"text": missed}])
    one.put("ada", ADA)
    one.settle()
    (event,) = one.extracted
    assert "Great Hall" in [entity.name for entity in event.data.entities]
    assert [message["role"] for message in model.requests[1]["messages"]] == ["system", "user", "assistant", "user"]


# -- erasure, versions, time ------------------------------------------------------------------------------------------
def test_an_erasure_takes_what_the_model_told_with_it(make: Make) -> None:
    one = make()
    one.put("ada", ADA)
    one.put("ben", BEN)
    one.settle()
    one.world.send("document.erased", {"document_id": "ada"})
    one.world.erase()
    ledger = one.world.ledger
    assert b"Ada Byron" not in b"".join(row.body for row in ledger.read("default", 0, 1000).rows)
    identity = one.world.registry.backend_identity("extractor")
    assert "tuple" not in str(identity), "only what was set decides"
    again = len(one.model.requests)
    one.world.clock.advance(60)
    one.put("new", ADA)
    one.settle()
    assert len(one.model.requests) == again + 1, "what the ledger kept of the text is gone, so it is asked again"


def test_reaching_the_model_otherwise_is_no_new_version(make: Make) -> None:
    one = make()
    label = one.world.group("graph_index").name
    one._extractor = {**one._extractor, "timeout_s": 3, "concurrency": 7, "tokens_per_day": 9}
    same = one.open(ledger=one.world.ledger)
    assert [group.name for group in same.context.groups("default")] == [label]
    assert same.registry.make_backend("extractor", same.registry.backend_identity("extractor")).concurrency == 7
    one._extractor = {**one._extractor, "model": "better"}
    other = one.open(ledger=one.world.ledger)
    assert len(other.context.groups("default")) == 2
    same.close()
    other.close()


def test_what_a_backfill_will_cost_is_estimated(make: Make) -> None:
    one = make(usd_per_million_in=1.0, usd_per_million_out=4.0)
    for number in range(12):
        one.put(f"d{number}", f"Person {chr(65 + number)}x works at Acme Works.")
    rows = [r.instance for r in one.world.group("graph_index").runtimes]
    cost = estimate(one.world.context, "default", rows)
    assert cost.llm_calls == 12
    assert cost.llm_tokens_in > 12 * 300
    assert cost.llm_usd == pytest.approx((cost.llm_tokens_in + 4 * cost.llm_tokens_out) / 1e6, abs=1e-4)
    one.settle()
    assert estimate(one.world.context, "default", rows).llm_calls == 0, "all of it is known now"


def test_a_later_fact_ends_an_earlier_one_and_a_question_may_ask_about_then(make: Make) -> None:
    one = make({"single_valued": ["works at"]})
    start = one.world.clock.now_us()
    one.put("first", "Ada Byron works at Acme Works.")
    one.world.clock.advance(1000)
    one.put("home", "Ada Byron lives in London.")
    one.world.clock.advance(1000)
    one.put("second", "Ada Byron works at Beta Labs.")
    one.settle()
    end = start + 2000 * US
    found = one.ask("Where does Ada Byron work?")
    assert told(found, "acme works|ada byron").valid_to_us == end
    assert told(found, "ada byron|beta labs").valid_to_us is None
    assert told(found, "ada byron|london").valid_to_us is None

    def at(us: int) -> set[str]:
        return {r.relation_id for r in one.ask("Where does Ada Byron work?", as_of_us=us).relations}

    assert "acme works|ada byron" in at(start + 1500 * US)
    assert "ada byron|beta labs" not in at(start + 1500 * US)
    assert "acme works|ada byron" not in at(end + US)
    assert {"ada byron|beta labs", "ada byron|london"} <= at(end + US)
    one.world.send("document.deleted", {"document_id": "second"})
    one.world.fold()
    assert told(one.ask("Where does Ada Byron work?"), "acme works|ada byron").valid_to_us is None, "it holds again"


def test_a_fact_told_of_one_name_ends_that_of_another_of_the_same_entity(make: Make) -> None:
    one = make({"single_valued": ["works at"]})
    one.put("first", "Ada Byron works at Acme Works.")
    one.world.clock.advance(1000)
    end = one.world.clock.now_us()
    one.put("second", "Ada Lovelace works at Beta Labs.")
    one.settle()
    assert told(one.ask("Ada Byron"), "acme works|ada byron").valid_to_us is None
    one.world.send("entity.aliased", {"entity_id": "Ada Byron", "aliases": ["Ada Lovelace"]})
    one.world.fold()
    assert told(one.ask("Ada Byron"), "acme works|ada byron").valid_to_us == end
    assert told(one.ask("Ada Byron"), "ada byron|beta labs").valid_to_us is None
