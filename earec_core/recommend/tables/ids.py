"""A trained embedding per item id, alone (SASRec) or beside what vectors give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from earec_core.config import RecommenderConfig
from earec_core.recommend.tables.base import Items, ItemTable, TableKind, drawn


class IdTable(ItemTable):
    """A trained embedding per item id: with it the model is SASRec (Kang & McAuley, ICDM 2018).

    Args:
        n_items: n.
        dim: d.
    """

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(n_items, dim) * 0.02)

    def forward(self) -> Float[Tensor, "n d"]:
        return self.embedding

    def some(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        return self.embedding[rows]

    def to_transfer(self) -> dict[str, Tensor]:
        return {}


class TrainedIds(ItemTable):
    """A trained embedding per id, to stand beside vectors.

    An item without a training interaction has none (zeros): its embedding would only have learned that nobody chose
    it. While training, items lose theirs at random as a whole, so that an item also works without.

    Args:
        items: whose training interactions count.
        config: `dim` and `id_dropout`.
    """

    trained: Tensor

    def __init__(self, items: Items, config: RecommenderConfig) -> None:
        super().__init__()
        self.p = config.id_dropout
        self.embedding = nn.Parameter(torch.randn(len(items), config.dim) * 0.02)
        self.register_buffer("trained", (items.counts > 0).float()[:, None], persistent=False)

    def forward(self) -> Float[Tensor, "n d"]:
        return self._kept(self.trained, self.embedding)

    def some(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        return self._kept(self.trained[rows], self.embedding[rows])

    def _kept(self, kept: Float[Tensor, "k 1"], embedding: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        if self.training and self.p:
            kept = kept * drawn(self.p, len(kept), kept.device)
        return kept * embedding


class PlusIds(TrainedIds):
    """Trained embeddings per id added to another table's items.

    Args:
        table: what they are added to.
        items, config: see `TrainedIds`.
    """

    def __init__(self, table: ItemTable, items: Items, config: RecommenderConfig) -> None:
        super().__init__(items, config)
        self.table = table

    def forward(self) -> Float[Tensor, "n d"]:
        mixed: Tensor = self.table() + super().forward()
        return mixed

    def some(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        return self.table.some(rows) + super().some(rows)

    def to_transfer(self) -> dict[str, Tensor]:
        return self.table.to_transfer()

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        """The table below starts from another; the embeddings start at zero, and say nothing until trained."""
        self.table.transfer_from(tensors)
        nn.init.zeros_(self.embedding)


IDS = TableKind(
    "ids", "a trained embedding per item id", False, lambda config, items: IdTable(len(items), config.dim)
)
