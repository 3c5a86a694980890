"""The built-in plugin: policies and backends that come with streamfold, registered like any third party's."""

from __future__ import annotations

from streamfold.core import Backend, Policy, hookimpl
from streamfold.plugins import hashing, llm, minilm, names, sentences
from streamfold.plugins.activity import Activity
from streamfold.plugins.cooccurrence import Cooccurrence
from streamfold.plugins.corrections import Corrections
from streamfold.plugins.count_stack import CountStack
from streamfold.plugins.deepfm import Deepfm
from streamfold.plugins.diag_linucb import DiagLinucb
from streamfold.plugins.drift import Drift
from streamfold.plugins.ensemble import Ensemble
from streamfold.plugins.factorization import Factorization
from streamfold.plugins.gradient_head import GradientHead
from streamfold.plugins.graph_index import GraphIndex
from streamfold.plugins.graph_walk import GraphWalk
from streamfold.plugins.head_arms import HeadArms
from streamfold.plugins.head_ensemble import HeadEnsemble
from streamfold.plugins.head_quality import HeadQuality
from streamfold.plugins.implicit_ftrl import ImplicitFtrl
from streamfold.plugins.item_vectors import ItemVectors
from streamfold.plugins.kalman_head import KalmanHead
from streamfold.plugins.label_statistics import LabelStatistics
from streamfold.plugins.newest import Newest
from streamfold.plugins.novelty import Novelty
from streamfold.plugins.quality import Quality
from streamfold.plugins.reloop2_lsh import Reloop2Lsh
from streamfold.plugins.reloop2_topk import Reloop2Topk
from streamfold.plugins.residual_table import ResidualTable
from streamfold.plugins.trending import Trending
from streamfold.plugins.vector_index import VectorIndex


@hookimpl(trylast=True)
def register_policies() -> list[type[Policy]]:
    """Offer the policies that come with streamfold."""
    return [
        GraphIndex,
        VectorIndex,
        Trending,
        Activity,
        Cooccurrence,
        DiagLinucb,
        GraphWalk,
        ItemVectors,
        Newest,
        Quality,
        CountStack,
        Deepfm,
        Factorization,
        ImplicitFtrl,
        Ensemble,
        ResidualTable,
        Reloop2Lsh,
        Reloop2Topk,
        GradientHead,
        HeadArms,
        HeadEnsemble,
        HeadQuality,
        LabelStatistics,
        KalmanHead,
        Corrections,
        Drift,
        Novelty,
    ]


@hookimpl(trylast=True)
def register_backends() -> list[Backend]:
    """Offer encoders, the chunker, extractors and what asks language models; nothing heavy is imported yet."""
    return [minilm.BACKEND, hashing.BACKEND, sentences.BACKEND, names.BACKEND, *llm.BACKENDS]
