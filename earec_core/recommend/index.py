"""Nearest items by inner product: an exact FAISS index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.errors import IntegrityError
from earec_core.recommend.models import Recommender


class ItemIndex:
    """The items of a catalog, ready to be searched.

    Args:
        index: a FAISS index by inner product whose n keys are in the order of the items.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, keys: Float[Tensor, "n d"]) -> ItemIndex:
        """An index of every item's key, kept as float32."""
        import faiss

        index = faiss.IndexFlatIP(keys.shape[1])
        index.add(_plain(keys))
        return cls(index)

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Recommender) -> ItemIndex:
        """An index of a model's items."""
        return cls.build(model.keys(model.items()))

    @classmethod
    def load(cls, file: Path) -> ItemIndex:
        """Read what `save` wrote.

        Raises:
            IntegrityError: it is no index.
        """
        import faiss

        try:
            return cls(faiss.read_index(str(file)))
        except RuntimeError as error:
            raise IntegrityError(
                f"The index {file} cannot be read.", "Train the recommender again: earec recommend train."
            ) from error

    def save(self, file: Path) -> None:
        """Write the index, the same bytes for the same keys."""
        import faiss

        faiss.write_index(self._index, str(file))

    def __len__(self) -> int:
        """n."""
        return int(self._index.ntotal)

    def search(
        self, queries: Float[Tensor, "b d"], k: int
    ) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
        """Rows of the k items of the highest inner product with each query, best first, and the products.

        Args:
            k: at most n.
        """
        scores, rows = self._index.search(_plain(queries), k)
        return rows, scores


def _plain(x: Float[Tensor, "_ d"]) -> Float[np.ndarray, "_ d"]:
    return np.ascontiguousarray(x.float().cpu().numpy())
