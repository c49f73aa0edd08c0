"""Frozen item vectors through one trained linear map: the paper's, and its release's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from earec_core.config import RecommenderConfig
from earec_core.recommend.tables.base import Items, TableKind, VectorTable, small


class LinearTable(VectorTable):
    """Scaled vectors, dropout, a linear map."""

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__(config, items)
        self.adaptor = small(nn.Linear(self.vectors.shape[1], config.dim))

    def map(self, vectors: Float[Tensor, "k d_in"]) -> Float[Tensor, "k d"]:
        mapped: Tensor = self.adaptor(self.dropout(vectors))
        return mapped


LINEAR = TableKind("linear", "frozen vectors through a linear map", True, LinearTable)
