"""Recommenders: models that predict a user's next item from item vectors (Eqs. 6-8) or ids."""

from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.models import MODELS, choose_recommender, get_recommender, recommender_names
from earec_core.recommend.models.base import Recommender, RecommenderModel
from earec_core.recommend.retriever import Retriever
from earec_core.recommend.tables import TABLES, Items, ItemTable, TableKind
from earec_core.recommend.train import train
from earec_core.recommend.trained import TrainedRecommender

__all__ = [
    "MODELS",
    "TABLES",
    "ItemTable",
    "Items",
    "Recommender",
    "RecommenderModel",
    "Retriever",
    "TableKind",
    "TrainedRecommender",
    "choose_recommender",
    "evaluate",
    "get_recommender",
    "recommender_names",
    "train",
]
