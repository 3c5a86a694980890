"""What rankers are measured beside: Vowpal Wabbit's binding and river, an example at a time, as they come.

Both are told user, item and genres by name, and predict before they learn. Vowpal Wabbit is in the extra ``bench``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any


class Peer(ABC):
    """Scores a user and a film with its genres, and learns whether it was liked."""

    @abstractmethod
    def score(self, user: str, film: str, genres: Sequence[str]) -> float: ...

    @abstractmethod
    def learn(self, user: str, film: str, genres: Sequence[str], liked: bool) -> None: ...


class VowpalWabbit(Peer):
    """Namespaces ``u``, ``i`` and ``g``; what was predicted is learned without parsing it again."""

    def __init__(self, arguments: str) -> None:
        import vowpalwabbit

        told = f"--quiet --loss_function logistic --link logistic -b 20 --random_seed 7 {arguments}"
        self._model = vowpalwabbit.Workspace(told)

    @staticmethod
    def _line(user: str, film: str, genres: Sequence[str]) -> str:
        return f"|u u{user} |i i{film} |g {' '.join(one.replace(' ', '_') for one in genres)}"

    def score(self, user: str, film: str, genres: Sequence[str]) -> float:
        return float(self._model.predict(self._line(user, film, genres)))

    def learn(self, user: str, film: str, genres: Sequence[str], liked: bool) -> None:
        self._model.learn(f"{1 if liked else -1} {self._line(user, film, genres)}")


class RiverLogistic(Peer):
    """Logistic regression over indicators."""

    def __init__(self, optimizer: str, rate: float) -> None:
        from river import linear_model, optim

        self._model = linear_model.LogisticRegression(optimizer=getattr(optim, optimizer)(rate), l2=0.0)

    @staticmethod
    def _features(user: str, film: str, genres: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys([f"u={user}", f"i={film}", *(f"g={one}" for one in genres)], 1)

    def score(self, user: str, film: str, genres: Sequence[str]) -> float:
        return float(self._model.predict_proba_one(self._features(user, film, genres)).get(True, 0.5))

    def learn(self, user: str, film: str, genres: Sequence[str], liked: bool) -> None:
        self._model.learn_one(self._features(user, film, genres), liked)


class RiverFactors(Peer):
    """Biased matrix factorisation on the label 0 or 1; its predictions are kept within .01 and .99."""

    def __init__(self) -> None:
        from river import reco

        self._model: Any = reco.BiasedMF(n_factors=10, seed=7)

    def score(self, user: str, film: str, genres: Sequence[str]) -> float:
        found = float(self._model.predict_one(user=user, item=film))
        return min(0.99, max(0.01, found)) if found == found else 0.5

    def learn(self, user: str, film: str, genres: Sequence[str], liked: bool) -> None:
        self._model.learn_one(user=user, item=film, y=float(liked))


PEERS: dict[str, Callable[[], Peer]] = {
    "vowpal wabbit": lambda: VowpalWabbit(""),
    "vowpal wabbit, pairs": lambda: VowpalWabbit("-q ug"),
    "vowpal wabbit, ftrl, pairs": lambda: VowpalWabbit("--ftrl -q ug"),
    "river logistic": lambda: RiverLogistic("SGD", 0.05),
    "river logistic, adagrad": lambda: RiverLogistic("AdaGrad", 0.1),
    "river biased mf": RiverFactors,
}
