"""Other online learners on the stream of ``bench_rankers.py``: Vowpal Wabbit's Python binding and river.

Both are told what our rankers are told, one event a call: user, item, and both sides' tokens; each predicts, then
learns. The line of text that Vowpal Wabbit parses and the dictionary that river takes are made before the clock
starts.

``SAME_CLASS`` says which of them learns the kind of model that one of ours is, of the same facts; the others are
river's barest, told less or learning less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from streamfold.core import Example


class Peer(Protocol):
    """A learner that predicts an event, then learns it."""

    def told(self, example: Example) -> Any:
        """What it takes for an example."""
        ...

    def predict(self, told: Any) -> float: ...
    def take(self, told: Any, label: float) -> float:
        """Predict, then learn; returns the score from before."""
        ...


class VowpalWabbit:
    """One example object an event: parsed, predicted, learned."""

    def __init__(self, arguments: str) -> None:
        from vowpalwabbit import Workspace

        self._vw = Workspace(f"--quiet --loss_function logistic --link logistic -b 20 --random_seed 7 {arguments}")

    def told(self, example: Example) -> str:
        genres, facts = (
            " ".join(one.replace(":", "_").replace("|", "_").replace(" ", "_") for one in tokens)
            for tokens in (example.item_tokens, example.user_tokens)
        )
        user = example.user.replace(":", "_")
        return (
            f"{'1' if example.label else '-1'} |u {user} |i i{example.item} |g {genres}{f' |t {facts}' * bool(facts)}"
        )

    def predict(self, told: str) -> float:
        example = self._vw.example(told.partition(" ")[2])
        score = self._vw.predict(example)
        self._vw.finish_example(example)
        return float(score)

    def take(self, told: str, label: float) -> float:
        vw = self._vw
        example = vw.example(told)
        score = vw.predict(example)
        vw.learn(example)
        vw.finish_example(example)
        return float(score)


class River:
    """A river classifier over features that are there or not."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def told(self, example: Example) -> dict[str, int]:
        tokens = [*(f"g={one}" for one in example.item_tokens), *(f"t={one}" for one in example.user_tokens)]
        return dict.fromkeys([f"u={example.user}", f"i={example.item}", *tokens], 1)

    def predict(self, told: dict[str, int]) -> float:
        return float(self._model.predict_proba_one(told).get(True, 0.5))

    def take(self, told: dict[str, int], label: float) -> float:
        score = self.predict(told)
        self._model.learn_one(told, bool(label))
        return score


class RiverPairs(River):
    """As ``River``, with a feature for each pair that ``implicit_ftrl`` has one for, too."""

    def told(self, example: Example) -> dict[str, int]:
        pairs = [f"ug={example.user} {g}" for g in example.item_tokens]
        pairs += [f"it={example.item} {t}" for t in example.user_tokens]
        pairs += [f"gt={g} {t}" for g in example.item_tokens for t in example.user_tokens]
        return super().told(example) | dict.fromkeys(pairs, 1)


class RiverStatistics(River):
    """river's shrunk running means, which a logistic model weighs; its transformers know one genre an item: all as one.

    The means are those of the user, the item, the genres, and user and genres; and the last ones of user and item.
    """

    def __init__(self) -> None:
        from river import feature_extraction, linear_model, optim, stats

        def mean(by: list[str], n: float) -> Any:
            return feature_extraction.TargetAgg(by=by, how=stats.BayesianMean(prior=0.5, prior_weight=n))

        def lately(by: str) -> Any:
            return feature_extraction.TargetAgg(by=by, how=stats.EWMean(0.1))

        means = mean(["user"], 4) + mean(["item"], 6) + mean(["genres"], 20) + mean(["user", "genres"], 3)
        super().__init__(
            (means + lately("user") + lately("item")) | linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.06))
        )

    def told(self, example: Example) -> Any:
        return {"user": example.user, "item": example.item, "genres": "|".join(example.item_tokens)}


class RiverReco:
    """A river model of users and items alone."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def told(self, example: Example) -> tuple[str, str]:
        return example.user, example.item

    def predict(self, told: tuple[str, str]) -> float:
        return min(0.99, max(0.01, float(self._model.predict_one(*told))))

    def take(self, told: tuple[str, str], label: float) -> float:
        score = self.predict(told)
        self._model.learn_one(*told, y=label)
        return score


def _river_linear() -> River:
    from river import linear_model, optim

    return River(linear_model.LogisticRegression(optimizer=optim.SGD(0.05)))


def _river_ftrl() -> River:
    from river import linear_model, optim

    return RiverPairs(
        linear_model.LogisticRegression(optimizer=optim.FTRLProximal(alpha=0.5, beta=1.0, l1=0.0, l2=1.0))
    )


def _river_means() -> RiverReco:
    from river import optim, reco

    return RiverReco(reco.Baseline(optimizer=optim.SGD(0.05), l2=0.01))


def _river_ids_factors() -> RiverReco:
    from river import optim, reco

    steps = {"bias_optimizer": optim.SGD(0.05), "latent_optimizer": optim.SGD(0.05)}
    return RiverReco(reco.BiasedMF(n_factors=8, l2_bias=0.01, l2_latent=0.01, seed=7, **steps))


def _river_factors() -> River:
    from river import facto, optim

    vectors = optim.initializers.Normal(sigma=0.1, seed=7)
    return River(
        facto.FMClassifier(
            n_factors=8, weight_optimizer=optim.SGD(0.05), latent_optimizer=optim.SGD(0.02),
            latent_initializer=vectors, seed=7,
        )
    )  # fmt: skip


PEERS: dict[str, Callable[[], Peer]] = {
    "vw, linear": lambda: VowpalWabbit(""),
    "vw, linear with pairs": lambda: VowpalWabbit("-q ug -q it -q gt"),
    "vw, ftrl with pairs": lambda: VowpalWabbit("--ftrl -q ug -q it -q gt"),
    "vw, factors": lambda: VowpalWabbit("--lrq ui10 --lrq ug10 -l 0.1"),
    "river, means weighed": RiverStatistics,
    "river, FTRL with pairs": _river_ftrl,
    "river, FMClassifier": _river_factors,
    "river, BiasedMF": _river_ids_factors,
    "river, LogisticRegression": _river_linear,
    "river, Baseline": _river_means,
}
SAME_CLASS = {
    "count_stack": "river, means weighed", "implicit_ftrl": "river, FTRL with pairs",
    "factorization": "river, FMClassifier",
}  # fmt: skip


def speed(make: Callable[[], Peer], examples: Sequence[Example], repeats: int) -> float:
    """How many examples a second are predicted, then learned; the best of some repeats."""
    best = 0.0
    for _ in range(repeats):
        peer = make()
        told = [(peer.told(one), one.label) for one in examples]
        start = time.process_time()
        for one, label in told:
            peer.take(one, label)
        best = max(best, len(examples) / (time.process_time() - start))
    return best
