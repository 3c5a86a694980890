r"""Policy ``head_ensemble``: mixes heads, and learns per label how much each is to be believed.

Every member says what it makes of a label's target before it, or anyone, has learned the label. Served is

.. math:: p_t(c) = \sum_m w_{m,t}\, p_{m,t}(c), \qquad
          w_{m,t+1} = (1 - \alpha) \frac{w_{m,t}\, p_{m,t}(y_t)}{\sum_k w_{k,t}\, p_{k,t}(y_t)} + \frac{\alpha}{N}

where the p_m are members' probabilities over all classes that any of them knows, mixed with ε = 1e-4 of the uniform
distribution, so that no member is ever infinitely wrong. With α = 0 the mixture's cumulative log loss is at most that
of every member plus ln N nats, whatever the stream; with α > 0 (fixed share, Herbster and Warmuth 1998,
doi:10.1023/A:1007424614876) at most T ln 1/(1 − α) more, and it follows a change of the best. A label of a class that
no member knows yet says nothing about them.

``selection = "onenet"`` is the gate of OneNet (Wen et al. 2023, arXiv:2309.12659): the long-term weights w, learned by
exponentiated gradient (α = 0 above), are slow to leave who was right for long, so a short-term correction b is learned
by the gradient of the last losses beside them, and :math:`(w + b)_+`, normalised, is served:

.. math:: b_m \leftarrow \left[ρ\, b_m + η \left(\frac{p_{m,t}(y_t)}{p_t(y_t)} - 1\right)\right]_{-1}^{1}

It follows a change in about ten labels without a share for those who are wrong, and has no guarantee. OneNet learns b
by a small network from the same gradient; here it is learned directly.

Members are heads whose stores alone decide what they answer, to the bit: ``gradient_head`` s, not ``label_statistics``,
whose sums are kept by whoever serves and differ by rounding. Others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import scipy

from streamfold.core import (
    Batch,
    ClassifyRequest,
    ConfigError,
    Event,
    NeedsRebuild,
    Policy,
    Prediction,
    ReadOnly,
    ScoredLabel,
    Stores,
    Subject,
    Table,
    View,
    WrongTarget,
)
from streamfold.plugins._arms_of_heads import check_arms, reads_of, weight_of
from streamfold.plugins._labels import label_name
from streamfold.plugins._of_labels import OfLabels, vector_before
from streamfold.plugins._settings import one_of, within
from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import vectors_of
from streamfold.plugins.gradient_head import GradientHead

_SMOOTH = 1e-4
_FLOOR = 1e-6
"""Of a corrected weight: nobody counts for nothing, so the mixture is never infinitely wrong."""
_DIGITS = 6


class Believed(msgspec.Struct, frozen=True, array_like=True):
    """Logarithms of a head's members' weights, by how many labels they were learned, and OneNet's correction."""

    logs: tuple[float, ...]
    labels: int = 0
    short: tuple[float, ...] = ()

    @property
    def weights(self) -> Floats:
        """How much each member counts."""
        weights: Floats = np.exp(self.logs)
        if not self.short:
            return weights
        corrected = np.maximum(weights + np.array(self.short), 0.0) + _FLOOR
        return np.asarray(corrected / corrected.sum(), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEnsembleConfig:
    """Who is mixed.

    Parameters
    ----------
    members : names of ``gradient_head`` s in the settings.
    selection : ``fixed_share``, ``bayes`` (without a share) or ``onenet``.
    share : α of ``fixed_share``. rate, keep : η and ρ of ``onenet``.
    arms : as of ``label_statistics``: what was likely counts to the power of a label's weight.
    """

    members: tuple[str, ...] = ("gradient_head",)
    selection: Literal["fixed_share", "bayes", "onenet"] = "fixed_share"
    share: float = 0.001
    rate: float = 0.1
    keep: float = 0.99
    arms: str = ""

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise ConfigError(f"head_ensemble: members is {self.members}: name one or more heads, each once")
        one_of("head_ensemble", self, selection=("fixed_share", "bayes", "onenet"))
        within("head_ensemble", self, share=(0.0, 0.999999), rate=(1e-6, 10.0), keep=(0.0, 0.999999))


class HeadEnsemble(OfLabels):
    """Weights of members, by head."""

    name = "head_ensemble"
    version = 2
    Config = HeadEnsembleConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reads = (*self.config.members, *reads_of(self.config))
        self.stores = (Table("believed", key=str, value=Believed, max_rows=10_000, on_full="refuse"),)

    def check_reads(self, read: Mapping[str, Policy]) -> None:
        """Members are gradient heads."""
        check_arms(self.name, self.config, read)
        for name, member in read.items():
            if name != self.config.arms and not isinstance(member, GradientHead):
                raise ConfigError(
                    f"head_ensemble: its member {name!r} is a {member.name}: members are gradient_heads, whose stores "
                    "alone decide what they answer"
                )

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Reward the members that expected the label."""
        data, members = event.data, self.config.members
        servers = [stores.of(name).server for name in members]
        found = vector_before(data.target, prepared, servers[0])
        if data.label is None or found is None or data.weight == 0:
            return
        names, chances, _ = mixable(servers, data.head, found[0], found[1][None])
        label = servers[0].read_as(data.head, label_name(data.label))
        if label not in names:
            return
        old: Believed = stores["believed"].get(data.head) or uniform(len(members))
        likelihoods = chances[:, 0, names.index(label)] ** weight_of(data, self.config, stores)
        stores["believed"].put(data.head, learned(old, likelihoods, self.config))

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """What a label said of the members cannot be taken back."""
        raise NeedsRebuild(f"members were weighed by labels of {subject.kind} {subject.id!r}: it is done afresh")

    def serve(self, view: View) -> HeadEnsembleServer:
        """Classify by the members of the same view."""
        return HeadEnsembleServer(self.config, view)


def uniform(n: int) -> Believed:
    """What is believed before the first label."""
    return Believed((-math.log(n),) * n)


def rewarded(logs: Floats, likelihoods: Floats, share: float) -> Floats:
    """Weigh members by the probability that each gave to what came true, then move ``share`` back to uniform.

    >>> np.exp(rewarded(np.log([0.5, 0.5]), np.array([0.9, 0.3]), 0.0)).round(6).tolist()
    [0.75, 0.25]
    """
    joint = logs + np.log(likelihoods)
    found: Floats = joint - scipy.special.logsumexp(joint)
    if share:
        found = np.logaddexp(found + math.log1p(-share), math.log(share / len(logs)))
    return found


def learned(old: Believed, likelihoods: Floats, config: HeadEnsembleConfig) -> Believed:
    """What is believed after a label to which each member gave such a probability."""
    share = config.share if config.selection == "fixed_share" else 0.0
    logs = rewarded(np.array(old.logs), likelihoods, share)
    short: tuple[float, ...] = ()
    if config.selection == "onenet":
        before = np.array(old.short or (0.0,) * len(logs))
        slope = likelihoods / float(old.weights @ likelihoods) - 1
        short = tuple(np.clip(config.keep * before + config.rate * slope, -1.0, 1.0).tolist())
    return Believed(tuple(logs.tolist()), old.labels + 1, short)


def mixable(servers: Sequence[Any], head: str, space: str, phi: Floats) -> tuple[list[str], Floats, Floats]:
    """Return all members' classes, probabilities ``(members, n, classes)`` over them, smoothed, and ``unknown``.

    A member without labels of the head expects all classes alike.
    """
    told = [server.chances(head, space, phi) for server in servers]
    names = sorted({name for one in told if one is not None for name in one[0]})
    chances = np.zeros((len(servers), len(phi), len(names)))
    unknown = np.ones((len(servers), len(phi)))
    for i, one in enumerate(told):
        if one is None:
            chances[i] = 1 / max(len(names), 1)
            continue
        # a fold weighs members by this: beyond these digits a product depends on the library's threads
        chances[i][:, [names.index(name) for name in one[0]]] = one[1].round(_DIGITS)
        unknown[i] = one[2]
    return names, (1 - _SMOOTH) * chances + _SMOOTH / max(len(names), 1), unknown


class _Seen:
    """The ensemble's view, with the things that a member knows."""

    def __init__(self, view: View, member: ReadOnly) -> None:
        self.tools, self.of, self._member = view.tools, view.of, member

    def __getitem__(self, name: str) -> Any:
        return self._member[name]


class HeadEnsembleServer:
    """A ``Classifier`` over members."""

    def __init__(self, config: HeadEnsembleConfig, view: View) -> None:
        self._config, self._view = config, view

    def _servers(self) -> list[Any]:
        return [self._view.of(name).server for name in self._config.members]

    def heads(self) -> Mapping[str, int]:
        """Every head with how many labels the member has that has most of them."""
        found: dict[str, int] = {}
        for server in self._servers():
            for head, count in server.heads().items():
                found[head] = max(count, found.get(head, 0))
        return found

    def read_as(self, head: str, label: str) -> str | None:
        """The class that a label counts for, after merges; None: it was retired."""
        found: str | None = self._servers()[0].read_as(head, label)
        return found

    def thing(self, name: str) -> bytes | None:
        """The vector of a document, item or user, as the first member keeps it."""
        found: bytes | None = self._servers()[0].thing(name)
        return found

    def chances(self, name: str, space: str, phi: Floats) -> tuple[list[str], Floats, Floats] | None:
        """Classes, their probabilities ``(n, classes)`` and ``unknown (n,)``; None: no member has such labels."""
        names, chances, unknown = mixable(self._servers(), name, space, phi)
        weights = self._weights(name)
        return (names, np.einsum("m,mnc->nc", weights, chances), weights @ unknown) if names else None

    def _weights(self, head: str) -> Floats:
        believed: Believed | None = self._view["believed"].get(head)
        return (believed or uniform(len(self._config.members))).weights

    def classify(self, request: ClassifyRequest) -> list[Prediction]:
        """Mix what members say. Raises ``WrongTarget``."""
        servers, first = self._servers(), self._view.of(self._config.members[0])
        believed: Believed = self._view["believed"].get(request.head) or uniform(len(servers))
        weights = believed.weights
        explain = None
        if request.explain:
            members = dict(zip(self._config.members, weights.round(_DIGITS).tolist(), strict=True))
            explain = {"read_out": "mixture", "members": members, "labels": believed.labels}
        found = []
        for index, (space, vector) in enumerate(vectors_of(_Seen(self._view, first), request.targets)):
            names, chances, unknown = mixable(servers, request.head, space, vector[None])
            if not names:
                raise WrongTarget(index, f"no member has labels of head {request.head[:64]!r} and of such targets")
            mixed = (weights @ chances[:, 0]).round(_DIGITS)
            best = np.lexsort((np.arange(len(names)), -mixed))[: request.top_k].tolist()
            rows = [first["classes"].get(f"{request.head}\0{names[c]}") for c in best]
            labels = [
                ScoredLabel(names[c], float(mixed[c]), row.name if row is not None else None)
                for c, row in zip(best, rows, strict=True)
            ]
            said = round(float(weights @ unknown[:, 0]), _DIGITS)
            found.append(Prediction(labels=labels, unknown=said, explain=explain))
        return found
