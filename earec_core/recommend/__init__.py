"""The recommender: a small transformer over frozen item vectors predicts the next item (Eqs. 6-8)."""

from earec_core.metrics.ranking import Metrics
from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.model import IdTable, ItemTable, SequenceModel, VectorTable
from earec_core.recommend.train import EpochStats, TrainedRecommender, item_embeddings, train

__all__ = [
    "EpochStats",
    "IdTable",
    "ItemTable",
    "Metrics",
    "SequenceModel",
    "TrainedRecommender",
    "VectorTable",
    "evaluate",
    "item_embeddings",
    "train",
]
