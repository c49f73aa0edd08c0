"""EARec's recommender (Eqs. 6-8): the transformer over frozen item vectors through one trained linear map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.recommend.item_tables import VectorTable
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.models.transformer import TransformerRecommender


def build(
    config: RecommenderConfig, _: int, vectors: Float[Tensor, "n d_in"] | None
) -> TransformerRecommender:
    """A new model over the vectors, scaled as `config.scaling` says."""
    assert vectors is not None  # noqa: S101 - `needs_vectors`
    return TransformerRecommender(VectorTable(vectors, config.dim, scaling=config.scaling), config)


MODEL = RecommenderModel(
    "earec", "frozen item vectors through a trained map", True, build, TransformerRecommender.stored
)
