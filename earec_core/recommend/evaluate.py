"""HR@K and NDCG@K with full ranking over the catalog, leave-one-out.

The rank of a target is 1, plus the items that score higher, plus those that score the same and stand before
it in the catalog. Items that the user has seen compete like all others, as in RecBole's sequential
evaluation, unless `exclude_seen`; the target itself is never excluded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.catalog import LeaveOneOut
from earec_core.errors import EarecError
from earec_core.recommend.model import SequenceModel, last_states

KS = (10, 50)


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation.

    Attributes:
        ranks: rank of each evaluated user's target, from 1.
        users: the users' rows.
    """

    ranks: Int[np.ndarray, " k"]
    users: Int[np.ndarray, " k"]

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
        found: dict[str, float] = {"users": float(len(self.ranks))}
        for k in KS:
            for name, values in ((f"hr@{k}", self.ranks <= k), (f"ndcg@{k}", self.gains(k))):
                found[name] = round(float(np.mean(values)), 6)
                found[f"{name}_se"] = round(float(np.std(values) / math.sqrt(len(values))), 6)
        return found


def paired(a: Metrics, b: Metrics, k: int = 10) -> dict[str, float]:
    """Mean difference of the users' NDCG@k (a - b), its standard error and the p of a two-sided z-test."""
    difference = a.gains(k) - b.gains(k)
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    z = float(difference.mean()) / error if error else 0.0
    return {"difference": float(difference.mean()), "se": error, "p": math.erfc(abs(z) / math.sqrt(2))}


def rank_of(scores: Float[Tensor, "b n"], targets: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Rank of each row's target by the rule of this module.

    Raises:
        EarecError: a score is not a number.
    """
    if torch.isnan(scores).any():
        raise EarecError("The recommender's scores are not numbers.", "Lower recommender.lr and train again.")
    own = scores.gather(1, targets[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)


def histories(
    split: LeaveOneOut, which: Literal["valid", "test"], users: Int[np.ndarray, " k"]
) -> list[Tensor]:
    """What is known of each user before the target: for the test, the validation item as well."""
    found = []
    for user in users:
        items = split.train.of(int(user))
        if which == "test":
            items = np.append(items, split.valid[user])
        found.append(torch.from_numpy(np.ascontiguousarray(items)))
    return found


@torch.inference_mode()
def evaluate(
    model: SequenceModel,
    split: LeaveOneOut,
    which: Literal["valid", "test"],
    *,
    users: Int[np.ndarray, " k"] | None = None,
    exclude_seen: bool = False,
    batch: int = 512,
) -> Metrics:
    """Rank every evaluated user's target among all items.

    Args:
        users: rows of the users to evaluate; default: all that have targets.
        exclude_seen: items of the user's history do not compete.
    """
    model.eval()
    users = split.eval_users if users is None else users
    items = model.table()
    ranks = np.empty(len(users), dtype=np.int64)
    # Users with histories of similar length go together, so that little is padding.
    order = np.argsort(np.diff(split.train.offsets)[users], kind="stable")
    for start in range(0, len(users), batch):
        places = order[start : start + batch]
        part = users[places]
        known = histories(split, which, part)
        scores = model.scores(last_states(model, items, known), items)
        targets = torch.from_numpy(getattr(split, which)[part]).to(scores.device)
        if exclude_seen:
            own = scores.gather(1, targets[:, None]).clone()
            for row, history in enumerate(known):
                scores[row, history.to(scores.device)] = -math.inf
            scores.scatter_(1, targets[:, None], own)
        ranks[places] = rank_of(scores, targets).cpu().numpy()
    return Metrics(ranks, users)
