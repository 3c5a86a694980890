"""Candidate sources that list what is near items: near those that a user liked, or near one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from streamfold.core import CandidateRequest


class NearSeeds(ABC):
    """A ``CandidateSource`` and ``SimilarItems``."""

    def candidates(self, request: CandidateRequest) -> list[tuple[str, float]]:
        """Items near those that the user liked."""
        return self.near(request.seeds, request.n)

    def similar(self, item_id: str, n: int) -> list[tuple[str, float]]:
        """Items near one."""
        return self.near([(item_id, 1.0)], n)

    @abstractmethod
    def near(self, seeds: Sequence[tuple[str, float]], n: int) -> list[tuple[str, float]]:
        """List items near seeds ``(item_id, liking)``, best first, with scores."""
