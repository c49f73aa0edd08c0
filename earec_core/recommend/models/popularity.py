"""Popularity: every user is recommended what training saw most often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.tables import Items


class PopularityRecommender(Recommender):
    """An item's score is the number of its training interactions, whoever the user is.

    It reads no setting. Equals are many, so it is ranked by its scores, the catalog's order among them.

    Args:
        config: kept with what is stored.
        counts: training interactions of each item.
    """

    counts: Tensor

    def __init__(self, config: RecommenderConfig, counts: Int[Tensor, " n"]) -> None:
        super().__init__(config)
        self.register_buffer("counts", counts)

    @property
    def inner_product(self) -> bool:
        return False

    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """There is none: what is counted is not trained."""
        raise NotImplementedError(f"{type(self).__name__} has no parameters.")

    def items(self) -> Float[Tensor, "n 1"]:
        """Every item's training interactions, in double precision as all scores here."""
        return self.counts.double()[:, None]

    def users(
        self, histories: Sequence[Int[Tensor, " _"]], items: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "b 1"]:
        """The same for all."""
        return items.new_ones(len(histories), 1)

    def scores(self, users: Float[Tensor, "b 1"], items: Float[Tensor, "n 1"]) -> Float[Tensor, "b n"]:
        return users @ items.T

    @classmethod
    def counted(cls, config: RecommenderConfig, items: Items) -> PopularityRecommender:
        """That of a catalog's items."""
        return cls(config, items.counts)

    @classmethod
    def stored(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> PopularityRecommender:
        """That of the tensors of `to_store`.

        Raises:
            KeyError: they are another model's.
        """
        return cls(config, tensors["counts"])
