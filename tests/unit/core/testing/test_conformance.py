"""The kit: each check catches its broken policy and no other; the example plugin passes all of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Batch, Event, Policy, Stores, Subject, Table
from streamfold.core.testing import CHECKS, CheckFailed, Lab, check_policy, run_checks
from streamfold.core.testing.broken import BROKEN, Clocked, Misspelled
from streamfold.core.testing.lab import Case

EXAMPLE = Path(__file__).parents[3] / "example_plugin/src/streamfold_dwell.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("streamfold_dwell", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["streamfold_dwell"] = module
    spec.loader.exec_module(module)
    return module


def test_every_check_has_a_broken_policy_and_says_what_it_is_for() -> None:
    assert set(BROKEN) == set(CHECKS)
    assert all((check.__doc__ or "").strip() for check in CHECKS.values())
    assert all((kind.__doc__ or "").strip() for kind in BROKEN.values())


@pytest.mark.parametrize("name", CHECKS)
def test_exactly_its_own_check_catches_a_broken_policy(name: str) -> None:
    failed = {r.name: r.message for r in run_checks(BROKEN[name]) if r.state == "failed"}
    assert list(failed) == [name], failed
    assert "could not be run" not in failed[name]
    assert len(failed[name].split()) > 12, "the message says what was seen and what to do"


def test_after_a_check_that_all_others_rest_on_they_are_not_run() -> None:
    assert [r.state for r in run_checks(Misspelled)] == ["failed", *["not run"] * (len(CHECKS) - 1)]
    states = {r.name: r.state for r in run_checks(Clocked)}
    assert (states["repeatable"], states["clock"], states["forget"]) == ("passed", "failed", "not run")


def test_check_policy_names_the_check_and_tells_what_to_do() -> None:
    with pytest.raises(CheckFailed, match=r"clock fails 1 of \d+ checks:\n- clock: .*event\.at_s"):
        check_policy(Clocked)


def test_a_policy_that_claims_to_measure_and_does_not_is_told_so() -> None:
    class Claiming(BROKEN["clock"]):  # type: ignore[misc]  # a class of a mapping
        measures = True

    first = run_checks(Claiming)[0]
    assert first.state == "failed"
    assert "measures is True, but its server is no QualityReport: set measures = False" in first.message


def test_the_example_plugin_passes_with_its_own_event_type() -> None:
    module = load_example()
    check_policy(module.Dwell)
    with Lab(Case(make=module.Dwell)) as lab:
        assert "page.dwelled" in {event.type for event in lab.events()}


class Base(Policy):
    """Counts; read by ``Reading``."""

    name, version, handles = "base", 1, ("interaction.observed",)
    stores = (Table("count", key=str, value=int, max_rows=10_000),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["count"].put(item, stores["count"].get(item, 0) + 1)


class Reading(Policy):
    """Keeps what ``base`` had counted before the event."""

    name, version, handles, reads = "reading", 1, ("interaction.observed",), ("base",)
    stores = (Table("before", key=str, value=int, max_rows=10_000),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["before"].put(item, stores.of("base")["count"].get(item, 0))


def test_a_policy_that_reads_another_is_checked_in_its_group() -> None:
    from streamfold.core.testing import plugin

    failed = [r for r in run_checks(Reading, plugins=(plugin([Base]),)) if r.state == "failed"]
    assert [r.name for r in failed] == ["hash_seed"], "an object cannot be sent to another process"
    assert "give modules" in failed[0].message
    check_policy(Case(make=Reading, plugins=(sys.modules[__name__],)))


def register_policies() -> list[type[Policy]]:
    return [Base, Reading]


class Exact(Base):
    """Counts, and takes back what it counted."""

    name = "exact"

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        for event, _ in events:
            left = stores["count"].get(event.data.item_id) - 1
            if left:
                stores["count"].put(event.data.item_id, left)
            else:
                stores["count"].delete(event.data.item_id)


class Relying(Reading):
    """Leaves forgetting to what it reads: that is enough where that has the whole group folded afresh."""

    name, reads = "relying", ("base",)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["before"].put(item, stores.of(self.reads[0])["count"].get(item, 0))

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        pass


class Careless(Relying):
    """As ``Relying``, but what it reads forgets exactly, so nobody forgets what it keeps itself."""

    name, reads = "careless", ("exact",)


class Failing(Relying):
    """Its ``forget`` fails, which core does not pass over because another member would ask for a rebuild."""

    name = "failing"

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        raise KeyError(subject.id)


def test_a_group_forgets_as_one_so_a_rebuild_that_a_read_policy_asks_for_is_one_of_all() -> None:
    from streamfold.core.testing import plugin

    offered = (plugin([Base, Exact]),)
    [passed] = run_checks(Relying, plugins=offered, only=("forget",))
    assert passed.state == "passed", passed.message
    [careless] = run_checks(Careless, plugins=offered, only=("forget",))
    assert (careless.state, "store 'before'" in careless.message) == ("failed", True), careless.message
    [failing] = run_checks(Failing, plugins=offered, only=("forget",))
    assert (failing.state, "KeyError" in failing.message) == ("failed", True), failing.message


def test_a_module_that_runs_checks_when_imported_starts_no_workers_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMFOLD_KIT_WORKER", "1")  # as in a worker
    [result] = run_checks(Base, only=("hash_seed",))
    assert "__name__ == '__main__'" in result.message


def test_arguments_may_have_any_names() -> None:
    kind = type("Short", (Base,), {"__module__": __name__, "fold": lambda self, e, p, s: None})
    assert [result.state for result in run_checks(kind, only=("spec",))] == ["passed"]


def test_the_first_failing_import_or_constructor_is_said() -> None:
    def make() -> Policy:
        raise RuntimeError("no such file")

    results = run_checks(make)
    assert (results[0].name, results[0].state) == ("spec", "failed")
    assert "no such file" in results[0].message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 3}, "name is 3"),
        ({"version": "1"}, "version is '1'"),
        ({"handles": ["interaction.observed"]}, "set a tuple"),
        ({"handles": ()}, "set a tuple"),
        ({"stores": ()}, "stores is"),
        ({"stores": (Table("a"), Table("a"))}, "a name of its own"),
        ({"stores": ("count",)}, "declare Table"),
        ({"fold": lambda self, event, stores: None}, "core calls it with (event, prepared, stores)"),
        ({"fold": Policy.fold}, "fold is not defined"),
        ({"Config": dict}, "dataclass"),
        ({"reads": ("nobody",)}, "nobody"),
    ],
)
def test_spec_says_what_is_declared_wrongly(change: dict[str, Any], says: str) -> None:
    kind = type("Wrong", (Base,), {"__module__": __name__, **change})
    [result] = run_checks(kind, only=("spec",))
    assert result.state == "failed"
    assert says in result.message


@pytest.fixture(autouse=True)
def _no_example() -> Iterator[None]:
    yield
    sys.modules.pop("streamfold_dwell", None)
