"""Which items are like an item, by their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from earec_core.artifacts import ItemVectors
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.indexes import (
    AUTO,
    FLAT,
    ItemIndex,
    choose_index,
    open_index,
    plain,
    recall,
    sampled,
)
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
        index: of the directions; None where all of them are compared, which is exact.
    """

    scaling: Scaling
    rows: Int[Tensor, " m"]
    directions: Float[Tensor, "m d"]
    index: ItemIndex | None = None

    @classmethod
    def of(
        cls,
        vectors: Float[np.ndarray, "n d_in"],
        config: RecommenderConfig,
        *,
        index: str = AUTO,
        cache: Path | None = None,
    ) -> Neighbours:
        """Those of a catalog's items.

        Args:
            index, cache: see `earec_core.recommend.indexes.open_index`.

        Raises:
            UsageError: there is no such scaling, or no such index of so many items.
        """
        table = torch.from_numpy(vectors)
        known = table.any(1).nonzero().squeeze(1)
        scaling = fitted(table[known], config)
        directions = F.normalize(scaling(table[known]), dim=1)
        named = choose_index(*directions.shape)[0] if index == AUTO else index
        opened = None if named == FLAT else open_index(plain(directions), index, cache)
        return cls(scaling, known, directions, opened)

    def recall(self) -> float:
        """Part of an item's 10 nearest that the index finds, over a sample of the items; 1 where it is exact."""
        if self.index is None:
            return 1.0
        directions = plain(self.directions)
        rows = sampled(len(directions))
        return recall(self.index, directions, directions[rows], rows)

    def with_items(self, first: int, vectors: Float[np.ndarray, "m d_in"]) -> Neighbours:
        """The same with further items, scaled as the others are.

        Args:
            first: the row of the first of them.
        """
        table = torch.from_numpy(vectors)
        known = table.any(1).nonzero().squeeze(1)
        directions = F.normalize(self.scaling(table[known]), dim=1)
        return Neighbours(
            self.scaling,
            torch.cat([self.rows, known + first]),
            torch.cat([self.directions, directions]),
            None if self.index is None else self.index.with_vectors(plain(directions)),
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
        direction, count = self.directions[int(place)], min(k + 1, len(self.directions))
        if self.index is not None:
            (best,), (found,) = self.index.search(plain(direction[None]), count)
            if (found >= 0).all():
                return self._others(row, torch.from_numpy(found), torch.from_numpy(best), k)
        cosines, places = (self.directions @ direction).sort(descending=True, stable=True)
        return self._others(row, places[:count], cosines[:count], k)

    def _others(
        self, row: int, places: Int[Tensor, " c"], cosines: Float[Tensor, " c"], k: int
    ) -> list[tuple[int, float]]:
        """The first k of some places, an item itself left out: rows and cosines."""
        found = zip(self.rows[places].tolist(), cosines.tolist(), strict=True)
        return [(other, cosine) for other, cosine in found if other != row][:k]


def similar(vectors: ItemVectors, row: int, k: int, config: RecommenderConfig) -> list[tuple[int, float]]:
    """The rows of the k items most like an item, and their cosines; see `Neighbours`.

    Raises:
        UsageError: the item has no vector, or there is no such scaling.
    """
    return Neighbours.of(vectors.vectors, config).nearest(row, k)
