"""A first-order Markov chain: what training saw most often right after the user's last item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.catalog import Sequences
from earec_core.config import RecommenderConfig
from earec_core.recommend.models.popularity import PopularityRecommender
from earec_core.recommend.tables import Items


class MarkovRecommender(PopularityRecommender):
    """An item's score is how often it followed the user's last one in training; popularity decides among equals.

    Popularity counts for less than one transition: c / (1 + the largest c) of an item with c interactions. After an
    item that nothing followed it is all there is.

    Args:
        config, counts: as of `PopularityRecommender`.
        starts: what followed item i is `following[starts[i]:starts[i + 1]]`.
        following: item rows.
        times: how often each followed.
    """

    starts: Tensor
    following: Tensor
    times: Tensor

    def __init__(
        self,
        config: RecommenderConfig,
        counts: Int[Tensor, " n"],
        starts: Int[Tensor, " starts"],
        following: Int[Tensor, " m"],
        times: Int[Tensor, " m"],
    ) -> None:
        super().__init__(config, counts)
        for name, tensor in (("starts", starts), ("following", following), ("times", times)):
            self.register_buffer(name, tensor)

    def users(
        self, histories: Sequence[Int[Tensor, " _"]], items: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "b 1"]:
        """The row of each user's last item."""
        return torch.stack([history[-1] for history in histories])[:, None].to(items)

    def scores(self, users: Float[Tensor, "b 1"], items: Float[Tensor, "n 1"]) -> Float[Tensor, "b n"]:
        scores = (items.T / (1 + items.max())).repeat(len(users), 1)
        for row, last in enumerate(users[:, 0].long().tolist()):
            after = slice(self.starts[last], self.starts[last + 1])
            scores[row, self.following[after]] += self.times[after]
        return scores

    @classmethod
    def counted(cls, config: RecommenderConfig, items: Items) -> MarkovRecommender:
        """That of a catalog's items and training sequences."""
        return cls(config, items.counts, *_transitions(items.trained_on(), len(items)))

    @classmethod
    def stored(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> MarkovRecommender:
        names = ("counts", "starts", "following", "times")
        return cls(config, *(tensors[name] for name in names))


def _transitions(
    sequences: Sequences, n_items: int
) -> tuple[Int[Tensor, " starts"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """`starts`, `following` and `times` of the pairs of neighbours in sequences."""
    users = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    neighbours = users[:-1] == users[1:]
    last, following = sequences.items[:-1][neighbours], sequences.items[1:][neighbours]
    pairs, times = np.unique(last.astype(np.int64) * n_items + following, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(n_items + 1) * n_items)
    return torch.from_numpy(starts), torch.from_numpy(pairs % n_items), torch.from_numpy(times)
