"""Which items are like an item, by their vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from earec_core.artifacts import ItemVectors
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.scaling import Scaling, fitted


@dataclass(frozen=True)
class Neighbours:
    """Items as they are compared, computed once for many questions.

    An LLM's vectors all point the same way (cosines of 0.98 and above), so they are compared as a scaling leaves
    them, whitened by default. Items that have no vector (zeros) take no part.

    Attributes:
        scaling: as it was fitted to the items that there were at first.
        rows: of the items that take part, rising.
        directions: theirs, of length 1.
    """

    scaling: Scaling
    rows: Int[Tensor, " m"]
    directions: Float[Tensor, "m d"]

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "n d_in"], config: RecommenderConfig) -> Neighbours:
        """Those of a catalog's items.

        Raises:
            UsageError: there is no such scaling.
        """
        table = torch.from_numpy(vectors)
        known = table.any(1).nonzero().squeeze(1)
        scaling = fitted(table[known], config)
        return cls(scaling, known, F.normalize(scaling(table[known]), dim=1))

    def with_items(self, first: int, vectors: Float[np.ndarray, "m d_in"]) -> Neighbours:
        """The same with further items, scaled as the others are.

        Args:
            first: the row of the first of them.
        """
        table = torch.from_numpy(vectors)
        known = table.any(1).nonzero().squeeze(1)
        directions = F.normalize(self.scaling(table[known]), dim=1)
        return Neighbours(
            self.scaling, torch.cat([self.rows, known + first]), torch.cat([self.directions, directions])
        )

    def nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """The rows of the k items of the largest cosine to an item, and these, best first; itself left out.

        Raises:
            UsageError: the item has no vector.
        """
        place = (self.rows == row).nonzero()
        if not len(place):
            raise UsageError(
                "The item has no vector: the model read none of its modalities.", "Name another."
            )
        similarities = self.directions @ self.directions[int(place)]
        cosines, places = similarities.sort(descending=True, stable=True)
        found = zip(self.rows[places[: k + 1]].tolist(), cosines[: k + 1].tolist(), strict=True)
        return [(other, cosine) for other, cosine in found if other != row][:k]


def similar(vectors: ItemVectors, row: int, k: int, config: RecommenderConfig) -> list[tuple[int, float]]:
    """The rows of the k items most like an item, and their cosines; see `Neighbours`.

    Raises:
        UsageError: the item has no vector, or there is no such scaling.
    """
    return Neighbours.of(vectors.vectors, config).nearest(row, k)
