"""The ledger's contract, first part: the log. SQLite and PostgreSQL pass the same tests."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from streamfold.core.clock import ManualClock
from streamfold.core.errors import ConfigError, IntakeConflict, LedgerBusy, LedgerError, LedgerUnavailable
from streamfold.core.events import Acceptor, EventTypes, builtin_types
from streamfold.core.ledger import check_migrations, open_ledger
from streamfold.core.ledger.abc import NORMAL, SUPERSEDED, DeadLetter, IntakeEnd, IntakeMove, Ledger
from streamfold.core.testing.ledger_contract import WORKSPACE, make_event, make_events


def seqs(ledger: Ledger) -> list[int]:
    return [row.seq for row in ledger.read(WORKSPACE, 0, 100_000).rows]


def test_events_are_read_in_the_order_in_which_they_were_appended(ledger: Ledger) -> None:
    batch = make_events("a", "b", "c")
    done = ledger.append(WORKSPACE, batch, recorded_us=7)
    assert (done.outcomes, done.positions, done.superseded, done.head) == (["accepted"] * 3, [1, 2, 3], 0, 3)
    page = ledger.read(WORKSPACE, 0, 10)
    assert page.head == 3
    assert [(r.seq, r.recorded_us, r.type, r.body) for r in page.rows] == [
        (i, 7, e.type, e.body) for i, e in enumerate(batch, 1)
    ]
    assert [r.seq for r in ledger.read(WORKSPACE, 1, 1).rows] == [2]
    assert [r.seq for r in ledger.read(WORKSPACE, 0, 10, upto=2).rows] == [1, 2]
    assert ledger.read(WORKSPACE, 3, 10).rows == []
    assert ledger.head(WORKSPACE) == 3


def test_workspaces_do_not_see_each_other(ledger: Ledger) -> None:
    ledger.ensure_workspace("other")
    ledger.ensure_workspace("other")
    ledger.append(WORKSPACE, make_events("a"), recorded_us=1)
    assert ledger.append("other", make_events("a"), recorded_us=1).outcomes == ["accepted"]
    assert ledger.workspaces() == ["other", WORKSPACE]
    assert ledger.head("third") == 0
    with pytest.raises(LedgerError, match="third"):
        ledger.append("third", make_events("a"), recorded_us=1)


def test_an_empty_batch_changes_nothing(ledger: Ledger) -> None:
    assert ledger.append(WORKSPACE, [], recorded_us=1).head == 0


def test_duplicates_within_and_across_batches_get_the_first_position_and_leave_no_holes(ledger: Ledger) -> None:
    assert ledger.append(WORKSPACE, make_events("a", "b", "a"), recorded_us=1).positions == [1, 2, 1]
    done = ledger.append(WORKSPACE, make_events("b", "c", "a", "d", "c"), recorded_us=2)
    assert done.outcomes == ["duplicate", "accepted", "duplicate", "accepted", "duplicate"]
    assert done.positions == [2, 3, 1, 4, 3]
    assert seqs(ledger) == [1, 2, 3, 4]
    assert ledger.append(WORKSPACE, make_events("a", "b"), recorded_us=3).head == 4


def test_the_same_object_twice_in_a_batch_is_one_event(ledger: Ledger) -> None:
    event = make_event("a")
    assert ledger.append(WORKSPACE, [event, event], recorded_us=1).outcomes == ["accepted", "duplicate"]


def test_a_known_id_with_other_content_is_reused(ledger: Ledger) -> None:
    other = make_event("a", data=b"[1]")
    assert ledger.append(WORKSPACE, [make_event("a"), other], recorded_us=1).outcomes == ["accepted", "reused"]
    assert ledger.append(WORKSPACE, [other], recorded_us=1).outcomes == ["reused"]
    assert ledger.append(WORKSPACE, [make_event("a", source="s2", data=b"[1]")], recorded_us=1).outcomes == ["accepted"]


def test_an_older_sequence_is_logged_but_superseded(ledger: Ledger) -> None:
    first = [make_event("a", sequence=5), make_event("b", sequence=4), make_event("c", subject="u2", sequence=1)]
    assert ledger.append(WORKSPACE, first, recorded_us=1).superseded == 1
    later = [make_event("d", sequence=5), make_event("e", sequence=6), make_event("f"), make_event("a", sequence=5)]
    done = ledger.append(WORKSPACE, later, recorded_us=2)
    assert (done.superseded, done.outcomes[3]) == (1, "duplicate")
    effects = [row.effect for row in ledger.read(WORKSPACE, 0, 10).rows]
    assert effects == [NORMAL, SUPERSEDED, NORMAL, SUPERSEDED, NORMAL, NORMAL]


def test_a_retry_is_an_entry_of_its_own(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, [*make_events("a"), make_event("a:retry", retry_of=1)], recorded_us=1)
    assert [row.retry_of for row in ledger.read(WORKSPACE, 0, 10).rows] == [None, 1]


def test_deletions_are_indexed_by_position(ledger: Ledger) -> None:
    batch = [*make_events("a"), make_event("b", subject="u9", deletes=True, sequence=3)]
    ledger.append(WORKSPACE, batch, recorded_us=1)
    ledger.append(WORKSPACE, [make_event("c", subject="u9", deletes=True, sequence=2)], recorded_us=1)
    assert ledger.deletions(WORKSPACE, 0) == [(2, "user", "u9")]
    assert ledger.deletions(WORKSPACE, 2) == []


def test_events_are_found_by_id_with_and_without_source(ledger: Ledger) -> None:
    batch = [make_event("a", source="x"), make_event("a", source="y"), make_event("b", source="x")]
    ledger.append(WORKSPACE, batch, recorded_us=1)
    assert [row.seq for row in ledger.find(WORKSPACE, "a")] == [2, 1]
    assert [row.seq for row in ledger.find(WORKSPACE, "a", "x")] == [1]
    assert ledger.find(WORKSPACE, "a", "z") == []
    assert ledger.find(WORKSPACE, "none") == []


def test_pages_are_filtered_by_type_and_subject(ledger: Ledger) -> None:
    batch = [make_event("a"), make_event("b", type="document.upserted"), make_event("c", subject="u2")]
    ledger.append(WORKSPACE, batch, recorded_us=1)
    assert [r.seq for r in ledger.page(WORKSPACE, after=0, limit=2)] == [1, 2]
    assert [r.seq for r in ledger.page(WORKSPACE, after=0, limit=9, type="document.upserted")] == [2]
    assert [r.seq for r in ledger.page(WORKSPACE, after=0, limit=9, subject_id="u2")] == [3]
    assert [r.seq for r in ledger.read(WORKSPACE, 0, 9, types=["document.upserted"]).rows] == [2]
    assert ledger.read(WORKSPACE, 0, 9, types=[]).rows == []
    assert [r.seq for r in ledger.rows(WORKSPACE, [3, 1, 99])] == [1, 3]
    assert ledger.rows(WORKSPACE, []) == []
    assert ledger.newest_seq(WORKSPACE, "user", "u1", 0) == 2
    assert ledger.newest_seq(WORKSPACE, "user", "u1", 2) is None


def test_a_stale_intake_position_writes_nothing(ledger: Ledger) -> None:
    move = IntakeMove(intake="kafka:c:t:0", expect=None, next=10, topic="ratings", rejected=1)
    ledger.append(WORKSPACE, make_events("a", "b"), recorded_us=1, moves=[move])
    letter = DeadLetter(stage="decode", code="malformed", detail="?")
    for expect in (None, 9):
        stale = IntakeMove(intake="kafka:c:t:0", expect=expect, next=20)
        with pytest.raises(IntakeConflict):
            ledger.append(WORKSPACE, make_events("c"), recorded_us=2, moves=[stale], dead=[letter])
    assert (ledger.head(WORKSPACE), ledger.dead_letter_count(WORKSPACE)) == (2, 0)
    good = IntakeMove(intake="kafka:c:t:0", expect=10, next=20, duplicates=2)
    assert ledger.append(WORKSPACE, make_events("c", "a"), recorded_us=3, moves=[good]).positions == [3, 1]
    (state,) = ledger.intakes(WORKSPACE)
    assert (state.topic, state.next_offset, state.updated_us) == ("ratings", 20, 3)
    assert (state.events, state.duplicates, state.rejected) == (3, 3, 1)


def test_how_far_an_intake_could_be_is_kept_beside_where_it_stands(ledger: Ledger) -> None:
    def end(intake: str, offset: int, seen_us: int) -> IntakeEnd:
        return IntakeEnd(intake=intake, topic="ratings", next_offset=offset, seen_us=seen_us)

    ledger.note_ends(WORKSPACE, [])
    ledger.note_ends(WORKSPACE, [end("kafka:c:t:1", 5, 10), end("kafka:c:t:0", 7, 10)])
    assert ledger.intakes(WORKSPACE) == []  # it is not where the intake stands: the first move expects nothing there
    move = IntakeMove(intake="kafka:c:t:0", expect=None, next=3, topic="ratings")
    ledger.append(WORKSPACE, make_events("a"), recorded_us=11, moves=[move])
    ledger.note_ends(WORKSPACE, [end("kafka:c:t:0", 9, 20), end("kafka:c:t:1", 4, 9)])  # the second was seen earlier
    ledger.ensure_workspace("other")
    ledger.note_ends("other", [end("kafka:c:t:2", 1, 1)])
    assert [(state.intake, state.next_offset) for state in ledger.intakes(WORKSPACE)] == [("kafka:c:t:0", 3)]
    assert ledger.intake_ends(WORKSPACE) == [end("kafka:c:t:0", 9, 20), end("kafka:c:t:1", 5, 10)]


def test_several_moves_share_the_batch_by_what_they_took(ledger: Ledger) -> None:
    moves = [
        IntakeMove(intake="b", expect=None, next=2, took=2),
        IntakeMove(intake="a", expect=None, next=1, took=1),
        IntakeMove(intake="c", expect=None, next=1),
    ]
    ledger.append(WORKSPACE, make_events("1", "1", "2"), recorded_us=1, moves=moves)
    assert [(i.intake, i.events, i.duplicates) for i in ledger.intakes(WORKSPACE)] == [
        ("a", 1, 0),
        ("b", 1, 1),
        ("c", 0, 0),
    ]


def test_a_reader_passes_over_nothing_while_appenders_run(ledger: Ledger) -> None:
    """Overlapping batches in different orders: also a test of deadlocks."""
    stop = threading.Event()
    seen: list[int] = []

    def append(worker: int) -> int:
        accepted = 0
        for i in range(30):
            own = [f"{worker}-{i}-{j}" for j in range(5)]
            shared = [f"shared-{i}-{j}" for j in range(5)]
            batch = make_events(*own, *(shared if worker % 2 else reversed(shared)))
            accepted += ledger.append(WORKSPACE, batch, recorded_us=1).outcomes.count("accepted")
        return accepted

    def read() -> None:
        at = 0
        while True:
            last = stop.is_set()
            page = ledger.read(WORKSPACE, at, 7)
            seen.extend(row.seq for row in page.rows)
            at = page.head if len(page.rows) < 7 else page.rows[-1].seq
            if last and at == page.head:
                return

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        accepted = sum(pool.map(append, range(4)))
        stop.set()
        reader.result()
    assert accepted == 4 * 30 * 5 + 30 * 5
    assert seen == list(range(1, accepted + 1))


def test_large_batches_and_bodies_pass(ledger: Ledger) -> None:
    batch = [*make_events(*range(2_500)), make_event("big", data=b"x" * 3_000_000)]
    assert ledger.append(WORKSPACE, batch, recorded_us=1).head == 2_501
    assert set(ledger.append(WORKSPACE, batch, recorded_us=1).outcomes) == {"duplicate"}
    assert ledger.rows(WORKSPACE, [2_501])[0].body == batch[-1].body
    sizes = ledger.size_bytes()
    assert {"log", "feed", "results", "dead_letters", "total"} <= set(sizes)
    assert sizes["total"] > 0


def test_everything_is_there_after_reopening(url: str) -> None:
    assert not check_migrations(url)
    first = open_ledger(url)
    first.ensure_workspace(WORKSPACE)
    first.append(WORKSPACE, make_events("a"), recorded_us=1)
    first.close()
    first.close()
    assert check_migrations(url)
    second = open_ledger(url, migrate=False)
    assert second.timeline_id == first.timeline_id
    assert second.append(WORKSPACE, make_events("a"), recorded_us=1).outcomes == ["duplicate"]
    second.close()


CRASHING = """
import sys
from streamfold.core.ledger import open_ledger
from streamfold.core.testing.ledger_contract import WORKSPACE, make_events, make_lease
ledger = open_ledger(sys.argv[1])
ledger.ensure_workspace(WORKSPACE)
lease = make_lease(ledger)
for i in range(3):
    ledger.append(WORKSPACE, make_events(f"a{i}", f"b{i}"), recorded_us=1)
    lease = ledger.commit(WORKSPACE, lease, watermark=2 * i + 2, changes=b"c", now_us=1, ttl_us=9)
"""


@pytest.mark.parametrize(
    ("point", "head", "watermark"),
    [("append.in:2", 2, 2), ("append.after:2", 4, 2), ("commit.in:2", 4, 2), ("commit.after:2", 4, 4)],
)
def test_a_kill_in_the_middle_leaves_nothing_half(url: str, point: str, head: int, watermark: int) -> None:
    environment = os.environ | {"STREAMFOLD_CRASH": point}
    done = subprocess.run([sys.executable, "-c", CRASHING, url], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    ledger = open_ledger(url)
    group = ledger.group(WORKSPACE, "memory")
    assert (ledger.head(WORKSPACE), group.watermark, group.commit_no) == (head, watermark, watermark // 2)
    assert seqs(ledger) == list(range(1, head + 1))
    assert [c.watermark for c in ledger.feed(WORKSPACE, {"memory": 0})] == list(range(2, watermark + 1, 2))
    again = ledger.append(WORKSPACE, make_events("a0", "b0", "a1", "b1"), recorded_us=1)
    assert again.head == 4
    ledger.close()


def test_a_lost_connection_is_unavailable_once_and_then_replaced(postgres_database: str) -> None:
    ledger = open_ledger(postgres_database)
    ledger.ensure_workspace(WORKSPACE)
    engine = create_engine(postgres_database, poolclass=NullPool)
    end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> :me"
    with engine.connect() as connection:
        me = connection.scalar(text("select pg_backend_pid()"))
        connection.execute(text(end), {"me": me})
    with pytest.raises(LedgerUnavailable):
        ledger.append(WORKSPACE, make_events("a"), recorded_us=1)
    assert ledger.append(WORKSPACE, make_events("a"), recorded_us=1).outcomes == ["accepted"]
    ledger.close()
    engine.dispose()


def test_a_second_process_is_refused_on_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = open_ledger(url)
    with pytest.raises(LedgerBusy, match=str(os.getpid())):
        open_ledger(url)
    code = "import sys; from streamfold.core.ledger import open_ledger; open_ledger(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=False)
    assert "LedgerBusy" in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    ledger.close()
    with pytest.raises(LedgerUnavailable):
        ledger.append(WORKSPACE, make_events("a"), recorded_us=1)
    open_ledger(url).close()


def test_one_failing_job_does_not_hurt_those_that_share_its_transaction(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.ensure_workspace(WORKSPACE)
    ledger.append(WORKSPACE, [], recorded_us=1, moves=[IntakeMove(intake="i", expect=None, next=1)])
    stale = IntakeMove(intake="i", expect=None, next=1)

    def append(i: int) -> bool:
        try:
            ledger.append(WORKSPACE, make_events(i), recorded_us=1, moves=[stale] if i % 3 == 0 else [])
        except IntakeConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(append, range(200)))
    assert done == [i % 3 != 0 for i in range(200)]
    assert seqs(ledger) == list(range(1, sum(done) + 1))
    ledger.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"], indirect=False)
def test_urls_that_would_lose_events_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_ledger(url)


def test_counters_add_up(ledger: Ledger) -> None:
    assert ledger.counted(WORKSPACE, ["spent:a", "spent:b"]) == {"spent:a": 0, "spent:b": 0}
    ledger.count(WORKSPACE, {"spent:a": 5, "spent:b": 1})
    ledger.count(WORKSPACE, {"spent:a": 2})
    assert ledger.counted(WORKSPACE, ["spent:a", "spent:b"]) == {"spent:a": 7, "spent:b": 1}


def test_the_newest_events_of_some_subjects_are_found_by_type(ledger: Ledger) -> None:
    acceptor = Acceptor(EventTypes(builtin_types()), ManualClock())

    def send(type_: str, id_: str, **data: object) -> int:
        made = acceptor.accept_data(type_, {"document_id": id_, **data}, id=f"{type_}{id_}{data}", source="s")
        return ledger.append(WORKSPACE, [made], recorded_us=1).positions[0]

    first = send("document.upserted", "a", text="one")
    second = send("document.upserted", "b", text="two")
    patched = send("document.patched", "a", title="t")
    extracted = {"input_position": first, "chunk_hash": "h", "extractor": "e"}
    send("document.extracted", "a", **extracted)
    types = ("document.upserted", "document.deleted")
    found = ledger.newest_seqs(WORKSPACE, "document", ["a", "b", "c"], after=0, types=types)
    assert found == {"a": first, "b": second}
    assert ledger.newest_seqs(WORKSPACE, "document", ["a", "b"], after=first, types=types) == {"b": second}
    assert ledger.newest_seqs(WORKSPACE, "document", ["b"], after=0, upto=first, types=types) == {}
    assert ledger.newest_seq(WORKSPACE, "document", "a", 0) == patched, "what was extracted is nothing new"
