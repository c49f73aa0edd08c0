"""Full ranking over the catalog, leave-one-out.

Items that the user has seen compete like all others, as in RecBole's sequential evaluation, unless
`exclude_seen`; the target itself is never excluded.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from earec_core.catalog import LeaveOneOut
from earec_core.metrics.ranking import Metrics, rank_of
from earec_core.recommend.models.base import Recommender

Part = Literal["valid", "test"]
"""Whose targets are ranked."""
PARTS: tuple[Part, ...] = get_args(Part)
_SCORES = 1 << 22


def histories(split: LeaveOneOut, part: Part, users: Int[np.ndarray, " k"]) -> list[Int[Tensor, " _"]]:
    """Item rows of each user before the target: for the test, the validation item as well."""
    train, more = split.train, int(part == "test")
    lengths = np.diff(train.offsets)[users] + more
    ends = np.cumsum(lengths)
    places = np.repeat(train.offsets[users] - (ends - lengths), lengths) + np.arange(lengths.sum())
    rows = train.items.take(places, mode="clip")
    if more:
        rows[ends - 1] = split.valid[users]
    return list(torch.from_numpy(rows).split_with_sizes(lengths.tolist()))


@torch.inference_mode()
def evaluate(
    model: Recommender,
    split: LeaveOneOut,
    part: Part,
    *,
    users: Int[np.ndarray, " k"] | None = None,
    exclude_seen: bool = False,
    top: int = 0,
    batch: int | None = None,
) -> Metrics:
    """Rank every evaluated user's target among all items.

    Args:
        users: rows of the users to evaluate; default: all that have targets.
        exclude_seen: items of the user's history do not compete.
        top: how many of each user's best items are kept beside the ranks.
        batch: users at a time; default: as many as keep their scores within some MB.
    """
    model.eval()
    users = split.eval_users if users is None else users
    items = model.items()
    batch = batch or max(32, min(512, _SCORES // len(items)))
    ranks = np.empty(len(users), dtype=np.int64)
    best = np.empty((len(users), min(top, len(items))), dtype=np.int64)
    # Users with histories of similar length go together, so that little is padding.
    order = np.argsort(np.diff(split.train.offsets)[users], kind="stable")
    for start in range(0, len(users), batch):
        places = order[start : start + batch]
        chunk = users[places]
        past = histories(split, part, chunk)
        scores = model.scores(model.users(past, items), items)
        targets = torch.from_numpy(getattr(split, part)[chunk]).to(scores.device)
        if exclude_seen:
            own = scores.gather(1, targets[:, None]).clone()
            for row, history in enumerate(past):
                scores[row, history.to(scores.device)] = -math.inf
            scores.scatter_(1, targets[:, None], own)
        ranks[places] = rank_of(scores, targets).cpu().numpy()
        if top:
            best[places] = scores.topk(best.shape[1]).indices.cpu().numpy()
    return Metrics(ranks, users, best if top else None)
