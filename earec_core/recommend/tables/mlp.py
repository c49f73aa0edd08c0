"""Frozen item vectors through a network of two layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from earec_core.config import RecommenderConfig
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.tables.base import Items, TableKind, VectorTable, small

_WIDER, _DROPOUT = 4, 0.2


class MlpTable(VectorTable):
    """Scaled vectors, dropout, a layer of 4 x dim with GELU and dropout 0.2, a layer of dim.

    WhitenRec (arXiv 2402.10602) found on three of four data sets that whitened text needs more than a linear map.
    """

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__(config, items)
        wide = _WIDER * config.dim
        self.adaptor = nn.Sequential(
            nn.Linear(self.vectors.shape[1], wide),
            nn.GELU(),
            Dropout(_DROPOUT),
            small(nn.Linear(wide, config.dim)),
        )

    def map(self, vectors: Float[Tensor, "k d_in"]) -> Float[Tensor, "k d"]:
        mapped: Tensor = self.adaptor(self.dropout(vectors))
        return mapped


MLP = TableKind("mlp", "frozen vectors through two layers", True, MlpTable)
