"""Frozen item vectors through one trained linear map: the paper's, and its release's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from earec_core.config import RecommenderConfig
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.scaling import scaled
from earec_core.recommend.tables.base import Items, ItemTable, TableKind, frozen, small


class LinearTable(ItemTable):
    """Scaled vectors, dropout, a linear map.

    Args:
        vectors: frozen.
        config: `dim`, `scaling` and `table_dropout`.
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> None:
        super().__init__()
        frozen(self, scaled(vectors, config))
        self.dropout = Dropout(config.table_dropout)
        self.adaptor = small(nn.Linear(self.vectors.shape[1], config.dim))

    def forward(self) -> Float[Tensor, "n d"]:
        mapped: Tensor = self.adaptor(self.dropout(self.vectors))
        return mapped


def _build(config: RecommenderConfig, items: Items) -> LinearTable:
    return LinearTable(items.known(), config)


LINEAR = TableKind("linear", "frozen vectors through a linear map", True, _build)
