"""A recommender at work: opened once, asked many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.errors import IntegrityError, UsageError
from earec_core.recommend import indexes
from earec_core.recommend.indexes import AUTO, FLAT, ItemIndex, index_of, keys_of, plain, read_index
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
    """The best next items: by an index over a model's items, or by scoring them where it can have none.

    They are exactly the best where the index is flat; of another, most of them, and as many as with a flat one.

    Args:
        model: in evaluation mode.
        ids: of the catalog's items, by row.
        index: of the model's items; None chooses it by their number where the model's scores are inner products.
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
        index: ItemIndex | None = None,
        *,
        items: Float[Tensor, "n d"] | None = None,
        known: Int[np.ndarray, " _"] | None = None,
    ) -> None:
        self.model, self.ids = model, ids
        with torch.inference_mode():
            self._items = model.items() if items is None else items
        self.index = index_of(model, self._items) if index is None else index
        n = len(self._items)
        keys = n if self.index is None else len(self.index)
        if not (n if known is None else len(known)) == len(ids) or keys != n:
            raise IntegrityError(
                f"The recommender has {n} items, its index {keys}, the catalog {len(ids)}.",
                "Give the dataset it was trained on, or train again.",
            )
        self._known = np.arange(n) if known is None else known
        self._place = np.full(n, -1)
        self._place[self._known[self._known >= 0]] = np.flatnonzero(self._known >= 0)
        self._among = self._place >= 0
        self._withheld = frozenset(np.flatnonzero(~self._among).tolist())

    @classmethod
    def open(
        cls,
        folder: Path,
        ids: Sequence[str],
        known: Int[np.ndarray, " _"] | None = None,
        *,
        kind: str = AUTO,
        cache: Path | None = None,
    ) -> Retriever:
        """A recommender of `TrainedRecommender.save`; its flat index is read, and built where it has none stored.

        Args:
            ids: of the catalog's items, by row.
            known: see above.
            kind, cache: see `earec_core.recommend.indexes.open_index`.

        Raises:
            UsageError: it was made by another version, or has no index of this kind.
            IntegrityError: its index cannot be read, or is of other items.
        """
        model, file = TrainedRecommender.load(folder).model, folder / INDEX
        with torch.inference_mode():
            items = model.items()
        named = indexes.choose_index(*items.shape)[0] if kind == AUTO else kind
        if named == FLAT and file.exists():
            index: ItemIndex | None = ItemIndex(FLAT, "stored with the recommender", read_index(file))
        else:
            index = index_of(model, items, kind, cache)
        return cls(model, ids, index, items=items, known=known)

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
        index = self.index
        if index is not None:
            index = index.with_vectors(keys_of(self.model, items))
        return Retriever(self.model, [*self.ids, *ids], index, items=torch.cat([self._items, items]))

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

    @torch.inference_mode()
    def recall(self, histories: Sequence[Int[Tensor, " _"]]) -> float | None:
        """Part of the 10 best items after each history that the index finds, on average; 1 where it is exact.

        Args:
            histories: item rows of each user; None comes back where the model knows no item of any.
        """
        if self.index is None or self.index.exact:
            return 1.0
        rows = [self._known[history.numpy()] for history in histories]
        readable = [torch.from_numpy(mine[mine >= 0]) for mine in rows if (mine >= 0).any()]
        if not readable:
            return None
        users = self.model.users(readable, self._items)
        keys = keys_of(self.model, self._items)
        return indexes.recall(self.index, keys, plain(self.model.queries(users)))

    def _rank(self, histories: Sequence[Int[Tensor, " _"]], k: int, exclude_seen: bool) -> Iterator[Ranking]:
        """Rankings after histories of the model's rows."""
        if not histories:
            return
        users = self.model.users(histories, self._items)
        excluded = [self._withheld.union(history.tolist() if exclude_seen else ()) for history in histories]
        most = max(map(len, excluded)) - len(self._withheld)
        scores, rows = self._best(users, min(len(self._items) - len(self._withheld), k + most))
        for user, withheld, nearest, similarities in zip(users, excluded, rows, scores, strict=True):
            best = _kept(nearest, similarities, withheld, k)
            if len(best[0]) < min(k, len(self._items) - len(withheld)):  # an index may find too few
                (similarities,), (nearest,) = self._all(user[None])
                best = _kept(nearest, similarities, withheld, k)
            places = self._place[best[0]]
            yield Ranking(places, tuple(self.ids[row] for row in places.tolist()), best[1])

    def _best(
        self, users: Float[Tensor, "b d"], count: int
    ) -> tuple[Float[np.ndarray, "b _"], Int[np.ndarray, "b _"]]:
        """Scores and rows of the best items of each user, `count` of the catalog's among them."""
        if self.index is None:
            scores, rows = self._all(users)
            return scores[:, : count + len(self._withheld)], rows[:, : count + len(self._withheld)]
        among = self._among if self._withheld else None
        return self.index.search(plain(self.model.queries(users)), count, among=among)

    def _all(self, users: Float[Tensor, "b d"]) -> tuple[Float[np.ndarray, "b n"], Int[np.ndarray, "b n"]]:
        """Scores and rows of all items for each user, best first; equals in the catalog's order."""
        scores, rows = self.model.scores(users, self._items).sort(dim=1, descending=True, stable=True)
        return plain(scores), rows.cpu().numpy()


def _kept(
    rows: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"], withheld: Set[int], k: int
) -> tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]:
    """The first k rows that may be recommended, and their scores; row -1 is none."""
    keep = [place for place, row in enumerate(rows.tolist()) if row >= 0 and row not in withheld][:k]
    return rows[keep], scores[keep]
