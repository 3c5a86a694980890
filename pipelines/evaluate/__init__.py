"""Offline evaluation: rankers on a stream that is over, test-then-train, beside baselines.

- :mod:`~streamfold.pipelines.evaluate.source`: events of files or a log, in order of time
- :mod:`~streamfold.pipelines.evaluate.stack`: the declared policies, folded in this process
- :mod:`~streamfold.pipelines.evaluate.examples`: what is tested, when it is scored, what is compared
- :mod:`~streamfold.pipelines.evaluate.run`: score, then fold
- :mod:`~streamfold.pipelines.evaluate.baselines`: what rankers are compared with
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

from streamfold.core.errors import ConfigError, StreamfoldError
from streamfold.core.settings import Settings
from streamfold.pipelines.evaluate.baselines import baselines
from streamfold.pipelines.evaluate.examples import collect, slices
from streamfold.pipelines.evaluate.report import Report, served
from streamfold.pipelines.evaluate.run import ITEM_EVENTS, BaselineMethod, Method, PolicyMethod, plan, run
from streamfold.pipelines.evaluate.source import Source, count
from streamfold.pipelines.evaluate.stack import Stack

__all__ = ["NothingToTest", "Options", "Source", "evaluate"]

Progress = Callable[[str, int], Callable[[], None]]
"""``(phase, events)`` → what to call after each event."""


class NothingToTest(StreamfoldError):
    """The events hold nothing that rankers could be tested on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to evaluate.

    Parameters
    ----------
    policies : the rankers to score.
    baselines : score the built-in baselines too.
    warm_up : share of the labelled examples, the first ones, that are learned but not tested.
    first : examples that were completed before this position are learned but not tested.
    sample : positives whose place among all unseen items is measured (0: none).
    draws : of the bootstrap (0: no intervals).
    seed : of the sample and the draws.
    """

    policies: Sequence[str]
    baselines: bool = True
    warm_up: float = 0.1
    first: int = 1
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

    The events are folded twice: once by the policy that makes the labelled examples alone, which says what is to be
    scored when, then by all.
    """
    modules = list(plugins)
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
            "warm_up": options.warm_up,
            "seed": options.seed,
            "draws": options.draws,
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
