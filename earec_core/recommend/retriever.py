"""A recommender at work: opened once, asked many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        model: in evaluation mode.
        ids: of the catalog's items, by row.
        index: FAISS's, of the model's items; None builds it where the model's scores are inner products.
        items: in the model's space [n d]; default: the model's own, computed here, once.
        known: the model's row of each of the catalog's items, -1 for one that it does not know; default: the
            model's items are the catalog's.

    Raises:
        IntegrityError: model, ids and index are of different numbers of items.
    """

    def __init__(
        self,
        model: Recommender,
        ids: Sequence[str],
        index: Any = None,
        *,
        items: Float[Tensor, "n d"] | None = None,
        known: Int[np.ndarray, " _"] | None = None,
    ) -> None:
        self.model, self.ids = model, ids
        with torch.inference_mode():
            self._items = model.items() if items is None else items
        self.index = build_index(model, self._items) if index is None and model.inner_product else index
        n = len(self._items)
        keys = n if self.index is None else self.index.ntotal
        if not (n if known is None else len(known)) == len(ids) or keys != n:
            raise IntegrityError(
                f"The recommender has {n} items, its index {keys}, the catalog {len(ids)}.",
                "Give the dataset it was trained on, or train again.",
            )
        self._known = np.arange(n) if known is None else known
        self._place = np.full(n, -1)
        self._place[self._known[self._known >= 0]] = np.flatnonzero(self._known >= 0)
        self._withheld = frozenset(np.flatnonzero(self._place < 0).tolist())

    @classmethod
    def open(cls, folder: Path, ids: Sequence[str], known: Int[np.ndarray, " _"] | None = None) -> Retriever:
        """A recommender of `TrainedRecommender.save` with its index; one stored without gets it built.

        Args:
            ids: of the catalog's items, by row.
            known: see above.

        Raises:
            UsageError: it was made by another version.
            IntegrityError: its index cannot be read, or is of other items.
        """
        file = folder / INDEX
        index = read_index(file) if file.exists() else None
        return cls(TrainedRecommender.load(folder).model, ids, index, known=known)

    @property
    def items(self) -> Float[Tensor, "n d"]:
        """Every item of the model, in the model's space."""
        return self._items

    @torch.inference_mode()
    def with_items(self, ids: Sequence[str], items: Float[Tensor, "m d"]) -> Retriever:
        """The same with further items of the catalog, behind those that there are.

        Args:
            items: in the model's space.

        Raises:
            IntegrityError: it does not know all of the catalog's items, so that theirs are not the next rows.
        """
        if len(self._items) != len(self.ids) or self._withheld:
            raise IntegrityError(
                "A recommender that does not know all items takes no further ones.", "Give it item vectors."
            )
        return Retriever(self.model, [*self.ids, *ids], items=torch.cat([self._items, items]))

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[Int[Tensor, " _"]], k: int, *, exclude_seen: bool = True
    ) -> list[Ranking]:
        """The k best items after each history.

        Args:
            histories: item rows of each user in time order, one at least; items that the model does not know are
                passed over.
            k: items wanted; fewer come back only where the catalog has no more, none where the model knows none of
                a history.
            exclude_seen: leave out the items of the history.

        Raises:
            UsageError: a history is empty.
        """
        if not all(map(len, histories)):
            raise UsageError(
                "A user without items cannot be recommended to.", "Give one item of each at least."
            )
        rows = [self._known[history.numpy()] for history in histories]
        readable = [torch.from_numpy(mine[mine >= 0]) for mine in rows]
        rankings = iter(self._rank([mine for mine in readable if len(mine)], k, exclude_seen))
        nothing = Ranking(np.empty(0, np.int64), (), np.empty(0, np.float32))
        return [next(rankings) if len(mine) else nothing for mine in readable]

    def _rank(self, histories: Sequence[Int[Tensor, " _"]], k: int, exclude_seen: bool) -> Iterator[Ranking]:
        """Rankings after histories of the model's rows."""
        if not histories:
            return
        users = self.model.users(histories, self._items)
        seen = [set(history.tolist()) if exclude_seen else set() for history in histories]
        excluded = [self._withheld | mine for mine in seen]
        scores, rows = self._best(users, min(len(self._items), k + max(map(len, excluded))))
        for withheld, nearest, similarities in zip(excluded, rows, scores, strict=True):
            keep = [place for place, row in enumerate(nearest.tolist()) if row not in withheld][:k]
            places = self._place[nearest[keep]]
            yield Ranking(places, tuple(self.ids[row] for row in places.tolist()), similarities[keep])

    def _best(
        self, users: Float[Tensor, "b d"], count: int
    ) -> tuple[Float[np.ndarray, "b count"], Int[np.ndarray, "b count"]]:
        """Scores and rows of the best items of each user; without an index, equals in the catalog's order."""
        if self.index is not None:
            found: tuple[np.ndarray, np.ndarray] = self.index.search(plain(self.model.queries(users)), count)
            return found
        scores, rows = self.model.scores(users, self._items).sort(dim=1, descending=True, stable=True)
        return plain(scores[:, :count]), rows[:, :count].cpu().numpy()
