"""Offline evaluation: rankers or heads on a stream that is over, test-then-train, beside baselines.

- :mod:`~streamfold.pipelines.evaluate.source`: events of files or a log, in order of time
- :mod:`~streamfold.pipelines.evaluate.stack`: the declared policies, folded in this process
- :mod:`~streamfold.pipelines.evaluate.examples`: what is tested, when it is scored, what is compared
- :mod:`~streamfold.pipelines.evaluate.run`: score, then fold
- :mod:`~streamfold.pipelines.evaluate.baselines`: what rankers are compared with
- :mod:`~streamfold.pipelines.evaluate.labels`, :mod:`~streamfold.pipelines.evaluate.heads`,
  :mod:`~streamfold.pipelines.evaluate.heads_report`: the same for heads, over labels
- :mod:`~streamfold.pipelines.evaluate.metrics`, :mod:`~streamfold.pipelines.evaluate.intervals`,
  :mod:`~streamfold.pipelines.evaluate.offpolicy`: measures, their intervals, and what another policy would have earned
- :mod:`~streamfold.pipelines.evaluate.report`, :mod:`~streamfold.pipelines.evaluate.plot`: all of it as JSON values,
  and drawn
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfold.core import Classifier
from streamfold.core.errors import ConfigError, StreamfoldError
from streamfold.core.settings import Settings
from streamfold.pipelines.evaluate import heads, labels
from streamfold.pipelines.evaluate.baselines import baselines
from streamfold.pipelines.evaluate.examples import collect, slices
from streamfold.pipelines.evaluate.heads_report import HeadsReport
from streamfold.pipelines.evaluate.report import Report, served
from streamfold.pipelines.evaluate.run import ITEM_EVENTS, BaselineMethod, Method, PolicyMethod, plan, run
from streamfold.pipelines.evaluate.source import Source, count
from streamfold.pipelines.evaluate.stack import Stack

__all__ = ["NothingToTest", "Options", "Source", "evaluate"]

Progress = Callable[[str, int], Callable[[], None]]
"""``(phase, events)`` → what to call after each event."""


class NothingToTest(StreamfoldError):
    """The events hold nothing that the policies could be tested on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to evaluate.

    Parameters
    ----------
    policies : the rankers to score, or the heads.
    baselines : score the built-in baselines too.
    warm_up : share of the labelled examples, the first ones, that are learned but not tested.
    first : examples that were completed (targets that were labelled) before this position are learned but not tested.
    block : labels that a head is asked about at once, by the state from before them.
    sample : positives whose place among all unseen items is measured (0: none).
    draws : of the bootstrap (0: no intervals).
    seed : of the sample and the draws.
    """

    policies: Sequence[str]
    baselines: bool = True
    warm_up: float = 0.1
    first: int = 1
    block: int = 64
    sample: int = 500
    draws: int = 500
    seed: int = 0


def evaluate(
    settings: Settings,
    source: Source,
    options: Options,
    *,
    plugins: Iterable[Any] = (),
    progress: Progress = lambda phase, total: lambda: None,
) -> dict[str, Any]:
    """Score policies on events and report; raises :class:`NothingToTest` and ``ConfigError``.

    Rankers are scored on interactions, heads on labels.
    """
    modules = list(plugins)
    with Stack(settings, options.policies, modules) as stack:
        classify = _classify(stack, options.policies)
    found = (_heads if classify else _rankers)(settings, source, options, modules, progress)
    return {
        "task": "classify" if classify else "rank",
        **found,
        "warm_up": options.warm_up,
        "seed": options.seed,
        "draws": options.draws,
    }


def _classify(stack: Stack, names: Sequence[str]) -> bool:
    """Whether the policies are heads. Raises ``ConfigError`` where some are and some are not."""
    those = [name for name in names if isinstance(stack.servers[name], Classifier)]
    if those and len(those) < len(names):
        other = next(name for name in names if name not in those)
        raise ConfigError(
            f"policy {those[0]!r} classifies and {other!r} does not: heads are tested on labels, rankers on "
            "interactions; evaluate them one by one"
        )
    return bool(those)


def _heads(
    settings: Settings, source: Source, options: Options, modules: Sequence[Any], progress: Progress
) -> dict[str, Any]:
    """Score heads: each is folded alone, with what it reads."""
    answers: list[heads.Answers] = []
    wanted = frozenset((labels.LABEL, *labels.CLASS_EVENTS))
    for name in options.policies:
        with Stack(settings, [name], modules) as stack:
            types = stack.registry.event_types
            if not answers:
                step = progress("reading labels", count(source.rows, wanted))
                test = labels.collect(source.events(types, wanted), step)
                tested = _tested(test, options)
            step = progress(f"scoring {name}", count(source.rows, stack.handles))
            events = source.events(types, stack.handles)
            answers.append(heads.run(stack, name, test, tested, events, block=options.block, progress=step))
    if options.baselines:
        answers += heads.baselines(test, tested)
    report = HeadsReport(test, tested, answers, draws=options.draws, seed=options.seed)
    if not len(report):
        raise NothingToTest(f"no policy could classify any of {len(tested)} targets: {_why(answers)}")
    return {**report.body(), "block": options.block}


def _tested(test: labels.LabelSet, options: Options) -> list[int]:
    if not test.labels:
        raise NothingToTest("the events hold no labels (label.observed) that stand: heads are tested on these")
    past = range(int(len(test.labels) * options.warm_up), len(test.labels))
    tested = [index for index in past if test.labels[index].seq >= options.first]
    if not tested:
        raise NothingToTest(f"of {len(test.labels)} labelled targets none is past the warm-up")
    return tested


def _why(answers: Sequence[heads.Answers]) -> str:
    skipped = {one.name: one.cost.skipped for one in answers if one.cost is not None and one.cost.skipped}
    told = ", ".join(f"{name} skipped {n} events" for name, n in skipped.items())
    return told or "before each of them its head had no labels"


def _rankers(
    settings: Settings, source: Source, options: Options, modules: Sequence[Any], progress: Progress
) -> dict[str, Any]:
    """Score rankers.

    The events are folded twice: once by the policy that makes the labelled examples alone, which says what is to be
    scored when, then by all.
    """
    with _stack(settings, options.policies, modules) as stack:
        catalogue = _catalogue(stack)
        rankers = [PolicyMethod(name, stack.ranker(name)) for name in options.policies]
        types = stack.registry.event_types
        with Stack(settings, [catalogue], modules) as alone:
            total = count(source.rows, alone.handles)
            test = collect(alone, catalogue, source.events(types, alone.handles), progress("labelling", total))
        if not len(test):
            raise NothingToTest(_no_labels(source, catalogue))
        index = np.arange(len(test))
        seqs = np.array([example.seq for example in test.examples])
        tested = (index >= int(len(test) * options.warm_up)) & (seqs >= options.first)
        if not tested.any():
            raise NothingToTest(f"of {len(test)} labelled examples none is past the warm-up")
        about = slices(test.examples)
        methods: list[Method] = [*rankers, *(map(BaselineMethod, baselines()) if options.baselines else ())]
        todo = plan(test, about, tested, sample=options.sample, seed=options.seed)
        wanted = stack.handles | frozenset(ITEM_EVENTS)
        step = progress("scoring", count(source.rows, wanted))
        scores, items = run(stack, todo, methods, catalogue, source.events(types, wanted), step)
        if (shown := served(test)) is not None:
            scores.insert(len(rankers), shown)
        report = Report(todo, about, scores, items=items, draws=options.draws, seed=options.seed)
        return {
            **report.body(),
            "labels_by": catalogue,
            "skipped": stack.skipped,
        }


def _stack(settings: Settings, policies: Sequence[str], plugins: Sequence[Any]) -> Stack:
    """The policies' stack; where nothing in it makes examples, ``activity`` does."""
    stack = Stack(settings, policies, plugins)
    if stack.catalogues():
        return stack
    stack.close()
    return Stack(settings, [*policies, "activity"], plugins)


def _catalogue(stack: Stack) -> str:
    names = stack.catalogues()
    if len(names) > 1:
        raise ConfigError(
            f"these policies learn from different examples ({', '.join(names)}): what one is tested on is not what "
            "another is; evaluate them one by one"
        )
    return names[0]


def _no_labels(source: Source, catalogue: str) -> str:
    kinds: dict[str, int] = {}
    for row in source.rows:
        kinds[row.type] = kinds.get(row.type, 0) + 1
    listed = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"
    return (
        f"no event says that a user liked or disliked an item (events: {listed}). [policies.{catalogue}] says which "
        "actions do: positive, negative, and like_from for ratings"
    )
