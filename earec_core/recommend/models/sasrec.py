"""SASRec (Kang & McAuley, ICDM 2018): the transformer over a trained embedding per item id."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.recommend.item_tables import IdTable
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.models.transformer import TransformerRecommender


def build(
    config: RecommenderConfig, n_items: int, _: Float[Tensor, "n d_in"] | None
) -> TransformerRecommender:
    """A new SASRec; it takes no vectors."""
    return TransformerRecommender(IdTable(n_items, config.dim), config)


MODEL = RecommenderModel(
    "sasrec", "a trained embedding per item id", False, build, TransformerRecommender.stored
)
