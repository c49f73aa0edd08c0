"""HR@K and NDCG@K from the rank of each user's one target.

The rank of a target is 1, plus the items that score higher, plus those that score the same and stand before it in
the catalog.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from earec_core.errors import EarecError

KS = (10, 50)


class ScoresError(EarecError):
    """Scores that are no numbers."""

    def __init__(
        self,
        problem: str = "The recommender's scores are not numbers.",
        next_step: str = "Lower recommender.lr and train again.",
    ) -> None:
        super().__init__(problem, next_step)


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation.

    Attributes:
        ranks: rank of each evaluated user's target, from 1.
        users: the users' rows.
        top: rows of each user's best items, best first; None where they were not asked for.
    """

    ranks: Int[np.ndarray, " k"]
    users: Int[np.ndarray, " k"]
    top: Int[np.ndarray, "k t"] | None = None

    def of(self, chosen: Bool[np.ndarray, " k"]) -> Metrics:
        """Those of some of the users."""
        return Metrics(self.ranks[chosen], self.users[chosen], None if self.top is None else self.top[chosen])

    def hr(self, k: int) -> float:
        """Part of the users whose target is among the first k."""
        return float(np.mean(self.ranks <= k))

    def ndcg(self, k: int) -> float:
        """Mean of 1 / log2(rank + 1) over the users, 0 beyond k (one relevant item: the ideal is 1)."""
        return float(self.gains(k).mean())

    def gains(self, k: int) -> Float[np.ndarray, " k"]:
        """NDCG@k of each user."""
        return np.where(self.ranks <= k, 1 / np.log2(self.ranks + 1), 0.0)

    def summary(self) -> dict[str, float]:
        """`hr@k` and `ndcg@k`, each with its standard error over users."""
        figures: dict[str, float] = {"users": float(len(self.ranks))}
        for k in KS:
            for name, values in ((f"hr@{k}", self.ranks <= k), (f"ndcg@{k}", self.gains(k))):
                figures[name] = round(float(np.mean(values)), 6)
                figures[f"{name}_se"] = round(float(np.std(values) / math.sqrt(len(values))), 6)
        return figures


def rank_of(scores: Float[Tensor, "b n"], targets: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Rank of each row's target by the rule of this module.

    Raises:
        ScoresError: a score is not a number.
    """
    # A sum of numbers is a number but where infinities meet.
    if torch.isnan(scores.sum(1)).any() and torch.isnan(scores).any():
        raise ScoresError()
    if scores.device.type == "cpu":
        # numpy has no bfloat16.
        exact = scores.float() if scores.dtype == torch.bfloat16 else scores
        pairs = zip(exact.numpy(), targets.tolist(), strict=True)
        return torch.tensor([_rank(row, target) for row, target in pairs], dtype=torch.long)
    own = scores.gather(1, targets[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return 1 + ((scores > own) | ((scores == own) & before)).sum(1)


def _rank(scores: Float[np.ndarray, " n"], target: int) -> int:
    """The rank by numpy, which compares and counts several times as fast as torch on a processor."""
    own = scores[target]
    return int(1 + np.count_nonzero(scores[:target] >= own) + np.count_nonzero(scores[target + 1 :] > own))
