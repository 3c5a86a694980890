"""``streamfold demo``: what streamfold is for, in about a minute, on real data, each claim checked as it is shown.

Scenes: load → ask → ask in two steps → edit → delete → kill → verify → trend → trace → a bad candidate is refused, a
good one promoted and rolled back → a class appears → erase a user with proof. A scene that does not hold ends the demo
with exit code 1. Everything lies in a temporary folder, which is removed; no server and no network is needed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streamfold.pipelines.cli.ask import cited, ranking
from streamfold.pipelines.cli.client import Client, Problem
from streamfold.pipelines.cli.erase import erased
from streamfold.pipelines.cli.policies import start, unequal
from streamfold.pipelines.cli.state import FAILED, CliError, console
from streamfold.pipelines.cli.subservice import SubService
from streamfold.pipelines.cli.watch import trace_table
from streamfold.plugins import demo_data

SOURCE = "/demo"
BATCH = 500
KILL_AT = 0.4
"""The share of the ratings that were answered for when the service is killed."""
CLICKS = 5
SHOWN = 5
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "graph_index": {},
    "trending": {},
    "label_statistics": {},
    "activity": {"like_from": 8.0},
    "count_stack": {"ids": 4096, "crosses": 4096},
    "quality": {"ranker": "count_stack"},
}
WORSE, BETTER = {"ids": 8, "crosses": 8}, {"ids": 16384, "crosses": 32768}
"""Settings of candidates: all users and movies share eight rows; most have rows of their own."""
SHIP = "she was launched as a passenger ship in 1912"
LABELS = (
    ("film", "a silent film directed by its leading actor"),
    ("film", "the film won a prize for its director"),
    ("person", "an actress who was born in Evansville"),
    ("person", "he was a composer and died in Vienna"),
    ("ship", "a passenger ship launched at a yard in Belfast"),
)
"""Texts and what they are about; the last is the first of its class."""
INVENTED = "an invented illness called streamfold fever"


class NotHeld(Exception):
    """A claim of the demo did not hold."""


@dataclass(slots=True)
class Demo:
    """The demo's state: the service, a client of it, and where to show things."""

    service: SubService
    screen: Console
    client: Client = field(init=False)
    titles: dict[str, str] = field(default_factory=dict)
    checks: int = 0
    clicked_from: int = 0
    """Where in the log the clicks are."""

    def scene(self, title: str) -> None:
        self.screen.print()
        self.screen.rule(f"[bold]{title}[/]", align="left")

    def check(self, holds: bool, claim: str) -> None:
        """Show a claim with its mark; a claim that does not hold ends the demo."""
        self.screen.print(f"[green]✓[/] {claim}" if holds else f"[red]✗ {claim}[/]")
        if not holds:
            raise NotHeld(claim)
        self.checks += 1

    def bars(self) -> Progress:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self.screen)

    def ask(self, text: str, top_k: int = 10) -> list[Any]:
        return list(self.client.post("/v1/query", {"query": text, "top_k": top_k, "log_exposure": False})["chunks"])

    # -- scenes ---------------------------------------------------------------------------------------------------
    def load(self) -> None:
        """200 passages and the movies, until answers show them."""
        self.scene("1  Start the embedded service, load real data")
        started = time.perf_counter()
        with self.bars() as bars:
            task = bars.add_task("service", total=1)
            self.service.start()
            bars.update(task, completed=1)
            self.client = Client(self.service.url)
            passages, movies = list(_passages()), list(_movies())
            sends = (("Wikipedia passages", passages), ("movies", movies))
            tasks = [bars.add_task(name, total=len(events), start=False) for name, events in sends]
            for (_, events), task in zip(sends, tasks, strict=True):
                bars.start_task(task)
                for batch in _batches(events, 50 if events is passages else BATCH):
                    answer = self.client.send_lines(batch, wait_ms=30_000)
                    if answer["accepted"] != len(batch) or not answer["visible"]:
                        raise NotHeld(f"{len(batch)} events were sent and waited for, but the answer is {answer}")
                    bars.advance(task, len(batch))
        took_s = time.perf_counter() - started
        self.check(True, f"{len(passages)} passages embedded and {len(movies)} movies visible after {took_s:.1f} s")

    def question(self) -> demo_data.Question:
        """A question whose answer is cited."""
        question = demo_data.QUESTIONS[0]
        self.scene(f"2  Ask: “{question.text}”")
        chunks = self.ask(question.text)
        if chunks:
            self.screen.print(cited(1, chunks[0], explain=True, width=900))
        found = bool(chunks) and chunks[0]["document_id"] == question.document_id
        holds = found and question.answer in chunks[0]["text"]
        self.check(holds, f"the first passage says “{question.answer}” and is cited as {question.document_id}")
        return question

    def two_steps(self) -> None:
        """A question whose answer stands in a passage that another one leads to."""
        question = demo_data.QUESTIONS[3]
        self.scene(f"3  Ask in two steps: “{question.text}”")
        chunks = self.ask(question.text, 4)
        answering = next((c for c in chunks if c["document_id"] == question.document_id), None)
        for chunk in (next((c for c in chunks if c["document_id"] == question.by_way_of), None), answering):
            if chunk is not None:
                self.screen.print(cited(chunks.index(chunk) + 1, chunk, explain=True))
        path = [step["document_id"] for step in answering["path"]] if answering else []
        named = " → ".join(step["name"] for step in answering["path"]) if answering else ""
        holds = answering is not None and question.answer in answering["text"] and path == [question.by_way_of]
        self.check(
            holds,
            f"“{question.answer}” stands in {question.document_id}, "
            f"reached from {question.by_way_of} over the name “{named}”",
        )

    def edit(self, question: demo_data.Question) -> None:
        """The same question after the document changed."""
        self.scene("4  Edit the document, ask again")
        document = next(p for p in demo_data.passages() if p.document_id == question.document_id)
        text = document.text.replace("extrapulmonary tuberculosis", INVENTED).replace("tuberculosis", INVENTED)
        path, body = f"/v1/documents/{document.document_id}", {"title": document.title, "text": text}
        started = time.perf_counter()
        answer = self.client.put(path, body, wait="visible", wait_ms=30_000)
        took_ms = (time.perf_counter() - started) * 1000
        chunks = [c for c in self.ask(question.text) if c["document_id"] == question.document_id]
        if chunks:
            self.screen.print(cited(1, chunks[0], width=900))
        said = " ".join(c["text"] for c in chunks)
        holds = answer["visible"] and INVENTED in said and question.answer not in said
        self.check(holds, f"the answer has changed: visible after {took_ms:.0f} ms, embedding and commit included")

    def delete(self, question: demo_data.Question) -> None:
        """The same question after the document is gone."""
        self.scene("5  Delete the document, ask again")
        path = f"/v1/documents/{question.document_id}"
        started = time.perf_counter()
        answer = self.client.delete(path, wait="visible", wait_ms=30_000)
        took_ms = (time.perf_counter() - started) * 1000
        chunks = self.ask(question.text, 100) + self.ask(INVENTED, 100)
        left = [c for c in chunks if c["document_id"] == question.document_id or INVENTED in c["text"]]
        gone = False
        try:
            self.client.get(path)
        except Problem as problem:
            gone = problem.status == 404
        holds = answer["visible"] and gone and not left
        self.check(holds, f"nothing of it is left after {took_ms:.0f} ms: not in {len(chunks)} results, and 404")

    def kill(self) -> int:
        """``kill -9`` in the midst of sending; the sender goes on by itself."""
        ratings = list(_ratings())
        self.scene(f"6  Send {len(ratings):,} ratings, and kill -9 the service in the midst of it")
        with self.bars() as bars:
            sender = Sender(self.client.url, ratings, bars)
            sender.start()
            sender.wait_answered(int(len(ratings) * KILL_AT))
            self.service.kill()
            answered = sender.answered  # read after the kill: nothing can have been answered since
            bars.console.print(f"[red]kill -9[/] at {answered:,} answered; starting it again …")
            started = time.perf_counter()
            self.service.start()
            took_s = time.perf_counter() - started
            sender.join()
            if sender.failure is not None:
                raise sender.failure
        self.check(sender.retries > 0, f"the sender found it gone, retried {sender.retries}×, and ended by itself")
        self.check(
            sender.answered == len(ratings), f"up again after {took_s:.1f} s; {answered:,} counted on to the end"
        )
        again = Sender(self.client.url, ratings)
        again.run()
        counts = f"accepted {again.accepted:,}, duplicates {again.duplicates:,}"
        self.check(
            again.accepted == 0 and again.duplicates == len(ratings), f"the same {len(ratings):,} again: {counts}"
        )
        return len(ratings)

    def verify(self, sent: int) -> None:
        """Nothing lost, nothing twice: the log by count, the policies by folding it afresh."""
        self.scene("7  Nothing lost, nothing twice")
        pages = self.client.pages("/v1/events", at_most=10 * sent, type="interaction.observed")
        logged = [item["event"]["id"] for item in pages]
        holds = len(logged) == len(set(logged)) == sent
        self.check(holds, f"the log holds {len(logged):,} ratings, {len(set(logged)):,} of them different")
        with self.bars() as bars:
            for name in ("trending", "graph_index"):
                differences = self._verify(name, bars)
                if differences:
                    raise NotHeld(f"verify {name}: {differences}")
        self.check(True, "verify: equal (the log folded afresh gives the live state of both policies, bit for bit)")

    def _verify(self, name: str, bars: Progress) -> list[str]:
        task = bars.add_task(f"verify {name}", total=100)
        job_id = start(self.client, name, "verify", reason="demo")
        return unequal(
            self.client.wait_job(job_id, timeout_s=120, progress=lambda p: bars.update(task, completed=round(100 * p)))
        )

    def trend(self) -> str:
        """A few clicks change what is trending."""
        self.scene(f"8  {CLICKS} clicks change what is trending")
        before = self.client.get("/v1/trending", n=100)["items"]
        chosen = _within_reach(before)
        place = next(i for i, item in enumerate(before, 1) if item["item_id"] == chosen)
        now = datetime.now(UTC).isoformat()
        data = [{"user_id": f"visitor-{i}", "item_id": chosen, "action": "click"} for i in range(1, CLICKS + 1)]
        clicks = [_event("interaction.observed", f"click-{i}", click, now) for i, click in enumerate(data, 1)]
        started = time.perf_counter()
        answer = self.client.send_lines(clicks, wait_ms=30_000)
        took_ms = (time.perf_counter() - started) * 1000
        self.clicked_from = answer["position"] - CLICKS
        after = self.client.get("/v1/trending", n=100)["items"]
        self.screen.print(ranking(after[:SHOWN], self.titles))
        top = [item["item_id"] for item in after[:SHOWN]]
        name = self.titles.get(chosen, chosen)
        rank = top.index(chosen) + 1 if chosen in top else None
        holds = bool(answer["visible"]) and rank is not None and place > SHOWN
        self.check(holds, f"“{name}” went from place {place} to {rank}: visible after {took_ms:.0f} ms")
        return f"click-{CLICKS}"

    def trace(self, event_id: str) -> None:
        """What became of one event."""
        self.scene("9  Trace one event through")
        body = self.client.get(f"/v1/events/{event_id}", source=SOURCE)
        self.screen.print(trace_table(body))
        states = {str(row["policy"]).partition("@")[0]: row["state"] for row in body["policies"]}
        self.check(states.get("trending") == "folded", f"{event_id} is in the log and folded by trending")

    def gate(self) -> None:
        """A worse ranker is refused, a better one promoted and rolled back."""
        self.scene("10  A change goes live only through the gate")
        live = self._version("live")
        worse = self._candidate("with 8 rows", WORSE)
        failed: list[str] = []
        try:
            self.client.post(f"/v1/policies/{worse}/promote", {"reason": "demo"})
        except Problem as problem:
            failed = [rule["rule"] for rule in problem.gate if not rule["passed"]]
        self.check(bool(failed) and self._version("live") == live, f"promote {worse}: 409, {', '.join(failed)}")
        self.client.post(f"/v1/policies/{worse}/retire", {"reason": "demo"})
        better = self._candidate("with more rows", BETTER)
        done = self.client.post(f"/v1/policies/{better}/promote", {"reason": "demo"})
        now = self._version("live")
        self.check(now == better, f"promote {better}: live from position {done['position']} on, in place of {live}")
        done = self.client.post("/v1/policies/count_stack/rollback", {"reason": "demo"})
        self.check(self._version("live") == live, f"rollback: {live} again, from position {done['position']} on")

    def _candidate(self, what: str, config: Mapping[str, Any]) -> str:
        """Fold a shadow beside what is live, and show what the gate says."""
        body = {"name": "count_stack", "config": config, "slot": "shadow", "reason": "demo"}
        job_id = self.client.post("/v1/policies", body)["job_id"]
        with self.bars() as bars:
            task = bars.add_task(f"shadow {what}", total=100)
            self.client.wait_job(
                job_id, timeout_s=120, progress=lambda share: bars.update(task, completed=round(100 * share))
            )
            bars.update(task, completed=100)
        name = self._version("shadow")
        for rule in self.client.get(f"/v1/policies/{name}/quality")["gate"]:
            told = "" if rule["value"] is None else f"{rule['value']:.4f} (at most {rule['limit']:g}), "
            mark = "✓" if rule["passed"] else "✗"
            self.screen.print(f"  {mark} {rule['rule']}: {told}{rule['detail']}", highlight=False)
        return name

    def _version(self, slot: str) -> str:
        """The ranker's version in a slot, as it is addressed; the newest of several."""
        rows = self.client.get("/v1/policies")["items"]
        labels = [row["label"] for row in rows if row["policy"] == "count_stack" and row["slot"] == slot]
        return f"count_stack@{labels[-1]}" if labels else ""

    def classify(self) -> None:
        """A class appears with its first label."""
        self.scene(f"11  Classify: “{SHIP}”")
        before = self._labelled(LABELS[:-1])
        started = time.perf_counter()
        after = self._labelled(LABELS[-1:])
        took_ms = (time.perf_counter() - started) * 1000
        for name, found in (("before", before), ("after", after)):
            self.screen.print(f"{name:>8}: " + ", ".join(f"{one['label']} {one['score']:.2f}" for one in found))
        holds = "ship" not in {one["label"] for one in before} and after[0]["label"] == "ship"
        self.check(holds, f"a class that nobody had declared: answered {took_ms:.0f} ms after its first label was sent")

    def _labelled(self, labels: Sequence[tuple[str, str]]) -> list[Any]:
        events = [
            _event("label.observed", f"label-{text}", {"head": "topic", "target": {"text": text}, "label": label})
            for label, text in labels
        ]
        self.client.send_lines(events, wait_ms=30_000)
        body = {"head": "topic", "targets": [{"text": SHIP}], "log_exposure": False}
        return list(self.client.post("/v1/classify", body)["predictions"][0]["labels"])

    def erase(self) -> None:
        """Whoever asks to be forgotten is gone from the log and from every store, and the report says so."""
        user_id = f"visitor-{CLICKS}"
        self.scene(f"12  Erase {user_id}, with proof")
        started = time.perf_counter()
        erasure_id = self.client.post("/v1/erasures", {"user_id": user_id})["erasure_id"]
        report = erased(self.client, erasure_id, 120)
        took_s = time.perf_counter() - started
        for one in report["policies"]:
            self.screen.print(f"  {one['policy']}: {one['method']}, {one['removed']} events")
        left = sum(store["residue"] for store in report["stores"])
        logged = self.client.pages("/v1/events", at_most=100, subject=user_id)
        clicked = self.client.pages("/v1/events", at_most=1000, **{"from": self.clicked_from})
        said = json.dumps([*logged, *clicked])
        holds = report["state"] == "complete" and not left
        holds = holds and user_id not in said and f"visitor-{CLICKS - 1}" in said
        self.check(holds, f"complete after {took_s:.1f} s: {left} traces of {user_id} left in any store or in the log")


class Sender(threading.Thread):
    """Sends events in batches with retries, beside the scene that kills the service."""

    def __init__(self, url: str, events: Sequence[bytes], bars: Progress | None = None) -> None:
        super().__init__(name="sender", daemon=True)
        self._client = Client(url)
        self._events = events
        self._bars = bars
        self._task = bars.add_task("ratings", total=len(events)) if bars else None
        self.accepted = self.duplicates = self.retries = 0
        self.failure: BaseException | None = None
        self._moved = threading.Condition()

    @property
    def answered(self) -> int:
        return self.accepted + self.duplicates

    def wait_answered(self, count: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self.answered >= count or self.failure is not None, timeout=120)

    def run(self) -> None:
        try:
            for batch in _batches(self._events, BATCH):
                self._add(self._client.send_lines(batch, on_retry=self._retried))
            # only what answers show is counted as done
            self._client.send_lines(list(self._events[-1:]), wait_ms=30_000, on_retry=self._retried)
        except BaseException as error:
            self.failure = error
            with self._moved:
                self._moved.notify_all()
            if self._bars is None:
                raise
        finally:
            self._client.close()

    def _add(self, answer: Mapping[str, Any]) -> None:
        with self._moved:
            self.accepted += answer["accepted"]
            self.duplicates += answer["duplicates"]
            self._moved.notify_all()
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self.answered)

    def _retried(self, reason: str) -> None:
        del reason
        self.retries += 1


def _event(type_: str, event_id: str, data: Mapping[str, Any], time_: str | None = None) -> bytes:
    event = {"specversion": "1.0", "id": event_id, "source": SOURCE, "type": type_, "data": data}
    return json.dumps(event | ({"time": time_} if time_ else {}), ensure_ascii=False).encode()


def _passages() -> Iterator[bytes]:
    for p in demo_data.passages():
        data = {"document_id": p.document_id, "title": p.title, "text": p.text}
        yield _event("document.upserted", f"passage-{p.document_id}", data)


def _movies() -> Iterator[bytes]:
    for m in demo_data.movies():
        yield _event(
            "item.upserted", f"movie-{m.item_id}", {"item_id": m.item_id, "title": m.title, "categories": [*m.genres]}
        )


def _ratings() -> Iterator[bytes]:
    """The ratings of 2013, moved in time so that the last came just now: what trends is what was rated lately."""
    ratings = list(demo_data.ratings())
    shift_s = int(time.time()) - 1 - max(r.unix_s for r in ratings)
    for i, r in enumerate(ratings):
        data = {"user_id": r.user_id, "item_id": r.item_id, "action": "rating", "value": r.value}
        yield _event(
            "interaction.observed", f"rating-{i}", data, datetime.fromtimestamp(r.unix_s + shift_s, UTC).isoformat()
        )


def _batches(events: Sequence[bytes], size: int) -> Iterable[list[bytes]]:
    return (list(events[i : i + size]) for i in range(0, len(events), size))


def _within_reach(items: Sequence[Mapping[str, Any]]) -> str:
    """Choose the lowest item that ``CLICKS`` more would lift among the shown ones (a click weighs 1)."""
    last_shown = items[SHOWN - 1]["score"]
    reaching = [item for item in items[SHOWN:] if item["score"] + 0.9 * CLICKS > last_shown]
    if not reaching:
        raise NotHeld(f"no item of {len(items)} is within {CLICKS} clicks of place {SHOWN}")
    return str(reaching[-1]["item_id"])


def run(*, encoder: str = "minilm", screen: Console | None = None) -> int:
    """Play all scenes; return 0 when every check held, else 1."""
    screen = screen or console()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="streamfold-demo-") as folder:
        service = SubService(Path(folder), encoder=encoder, policies=POLICIES)
        demo = Demo(service, screen, titles={m.item_id: m.title for m in demo_data.movies()})
        try:
            demo.load()
            question = demo.question()
            demo.two_steps()
            demo.edit(question)
            demo.delete(question)
            demo.verify(demo.kill())
            demo.trace(demo.trend())
            demo.gate()
            demo.classify()
            demo.erase()
        except (NotHeld, CliError) as error:
            screen.print(f"\n[red]The demo ended early:[/] {type(error).__name__}", highlight=False)
            screen.print(str(error), markup=False)
            screen.print(service.log_text()[-3000:] if service.log.exists() else "", markup=False)
            return FAILED
        finally:
            service.stop()
    screen.print(f"\n[bold green]All {demo.checks} checks held[/] in {time.perf_counter() - started:.0f} s. Next:\n")
    screen.print("  streamfold init shop && cd shop        settings to change, and a sample to send", markup=False)
    screen.print("  streamfold serve                       the service, on http://127.0.0.1:8080", markup=False)
    screen.print("  streamfold send sample.jsonl --wait    then: streamfold query “…”, trending, status --watch")
    screen.print("  (without an activated environment: .venv/bin/streamfold; README.md says more)", markup=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m streamfold.pipelines.demo``."""
    parser = argparse.ArgumentParser(prog="streamfold demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", default="minilm", choices=("minilm", "hashing"), help="hashing needs no weights")
    return run(encoder=parser.parse_args(argv).encoder)


if __name__ == "__main__":
    raise SystemExit(main())
