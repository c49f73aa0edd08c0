"""Full ranking over the catalog, leave-one-out.

Items that the user has seen compete like all others, as in RecBole's sequential evaluation, unless
`exclude_seen`; the target itself is never excluded.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from earec_core.catalog import LeaveOneOut
from earec_core.metrics.ranking import Metrics, rank_of
from earec_core.recommend.models import Recommender


def histories(
    split: LeaveOneOut, which: Literal["valid", "test"], users: Int[np.ndarray, " k"]
) -> list[Tensor]:
    """What is known of each user before the target: for the test, the validation item as well."""
    known = []
    for user in users:
        items = split.train.of(int(user))
        if which == "test":
            items = np.append(items, split.valid[user])
        known.append(torch.from_numpy(np.ascontiguousarray(items)))
    return known


@torch.inference_mode()
def evaluate(
    model: Recommender,
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
    items = model.items()
    ranks = np.empty(len(users), dtype=np.int64)
    # Users with histories of similar length go together, so that little is padding.
    order = np.argsort(np.diff(split.train.offsets)[users], kind="stable")
    for start in range(0, len(users), batch):
        places = order[start : start + batch]
        part = users[places]
        known = histories(split, which, part)
        scores = model.scores(model.users(known, items), items)
        targets = torch.from_numpy(getattr(split, which)[part]).to(scores.device)
        if exclude_seen:
            own = scores.gather(1, targets[:, None]).clone()
            for row, history in enumerate(known):
                scores[row, history.to(scores.device)] = -math.inf
            scores.scatter_(1, targets[:, None], own)
        ranks[places] = rank_of(scores, targets).cpu().numpy()
    return Metrics(ranks, users)
