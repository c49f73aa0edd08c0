"""A recommender at work: opened once, asked many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.errors import IntegrityError, UsageError
from earec_core.recommend.index import build_index, plain, read_index
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.trained import INDEX, TrainedRecommender


@dataclass(frozen=True)
class Ranking:
    """Items for one user, best first.

    Attributes:
        rows: item rows of the catalog.
        ids: their ids.
        scores: their scores.
    """

    rows: Int[np.ndarray, " k"]
    ids: tuple[str, ...]
    scores: Float[np.ndarray, " k"]


class Retriever:
    """The best next items, exactly: by an index over a model's items, or by scoring them where it can have none.

    Args:
        model: in evaluation mode; its items are computed here, once.
        ids: of the items, by row.
        index: FAISS's, of the model's items; None builds it where the model's scores are inner products.

    Raises:
        IntegrityError: model, ids and index are of different numbers of items.
    """

    def __init__(self, model: Recommender, ids: Sequence[str], index: Any = None) -> None:
        self.model, self.ids = model, ids
        self.index = build_index(model) if index is None and model.inner_product else index
        with torch.inference_mode():
            self._items = model.items()
        n = len(self._items)
        keys = n if self.index is None else self.index.ntotal
        if not len(ids) == keys == n:
            raise IntegrityError(
                f"The recommender has {n} items, its index {keys}, the catalog {len(ids)}.",
                "Give the dataset it was trained on, or train again.",
            )

    @classmethod
    def open(cls, folder: Path, ids: Sequence[str]) -> Retriever:
        """A recommender of `TrainedRecommender.save` with its index; one stored without gets it built.

        Args:
            ids: of the items that it was trained on, by row.

        Raises:
            UsageError: it was made by another version.
            IntegrityError: its index cannot be read, or is of other items.
        """
        file = folder / INDEX
        index = read_index(file) if file.exists() else None
        return cls(TrainedRecommender.load(folder).model, ids, index)

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[Int[Tensor, " _"]], k: int, *, exclude_seen: bool = True
    ) -> list[Ranking]:
        """The k best items after each history.

        Args:
            histories: item rows of each user in time order, one at least.
            k: items wanted; fewer come back only where the catalog has no more.
            exclude_seen: leave out the items of the history.

        Raises:
            UsageError: a history is empty.
        """
        if not all(map(len, histories)):
            raise UsageError(
                "A user without items cannot be recommended to.", "Give one item of each at least."
            )
        users = self.model.users(histories, self._items)
        seen: list[set[int]] = [set(history.tolist()) if exclude_seen else set() for history in histories]
        scores, rows = self._best(users, min(len(self._items), k + max(map(len, seen))))
        rankings = []
        for excluded, nearest, similarities in zip(seen, rows, scores, strict=True):
            keep = [place for place, row in enumerate(nearest.tolist()) if row not in excluded][:k]
            ids = tuple(self.ids[row] for row in nearest[keep].tolist())
            rankings.append(Ranking(nearest[keep], ids, similarities[keep]))
        return rankings

    def _best(
        self, users: Float[Tensor, "b d"], count: int
    ) -> tuple[Float[np.ndarray, "b count"], Int[np.ndarray, "b count"]]:
        """Scores and rows of the best items of each user; without an index, equals in the catalog's order."""
        if self.index is not None:
            found: tuple[np.ndarray, np.ndarray] = self.index.search(plain(self.model.queries(users)), count)
            return found
        scores, rows = self.model.scores(users, self._items).sort(dim=1, descending=True, stable=True)
        return plain(scores[:, :count]), rows[:, :count].cpu().numpy()
