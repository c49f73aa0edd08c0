"""Full ranking over the catalog, leave-one-out.

Items that the user has seen compete like all others, as in RecBole's sequential evaluation, unless
`exclude_seen`; the target itself is never excluded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.catalog import LeaveOneOut
from earec_core.metrics.ranking import Metrics, rank_of
from earec_core.recommend.models.base import Recommender
from earec_core.recommend.ranking import ranks_by_products

Part = Literal["valid", "test"]
"""Whose targets are ranked."""
PARTS: tuple[Part, ...] = get_args(Part)
_SCORES = 1 << 22
"""Numbers of a batch's scores at most."""
_HELD, _POSITIONS = 1 << 14, 1 << 13
"""Users whose states are held; positions that are read together."""


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
        batch: users scored at a time; default: as many as keep their scores within some MB.
    """
    model.eval()
    users = split.eval_users if users is None else users
    items = model.items()
    keys = model.keys(items) if model.inner_product and not top else None
    batch = batch or max(32, min(512, _SCORES // len(items)))
    ranks = np.empty(len(users), dtype=np.int64)
    best = np.empty((len(users), min(top, len(items))), dtype=np.int64)
    lengths = np.diff(split.train.offsets)[users] + 1
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(users), _HELD):
        places = order[start : start + _HELD]
        past = histories(split, part, users[places])
        states = torch.cat([model.users(past[some], items) for some in _alike(lengths[places])])
        targets = torch.from_numpy(getattr(split, part)[users[places]]).to(states.device)
        seen = past if exclude_seen else None
        if keys is not None:
            ranks[places] = ranks_by_products(model.queries(states), keys, targets, seen).cpu().numpy()
            continue
        for first in range(0, len(places), batch):
            some = slice(first, first + batch)
            scores = model.scores(states[some], items)
            if seen:
                _leave_out(scores, seen[some], targets[some])
            ranks[places[some]] = rank_of(scores, targets[some]).cpu().numpy()
            if top:
                best[places[some]] = scores.topk(best.shape[1]).indices.cpu().numpy()
    return Metrics(ranks, users, best if top else None)


def _alike(lengths: Int[np.ndarray, " k"]) -> Iterator[slice]:
    """Users who are read together, as they come in the order of their lengths, so that little is padding.

    One at least, and else no more positions than `_POSITIONS`.
    """
    start = 0
    while start < len(lengths):
        some = lengths[start : start + _POSITIONS]
        padded = some * np.arange(1, len(some) + 1)
        size = max(1, int(np.searchsorted(padded, _POSITIONS, side="right")))
        yield slice(start, start + size)
        start += size


def _leave_out(
    scores: Float[Tensor, "b n"], past: Sequence[Int[Tensor, " _"]], targets: Int[Tensor, " b"]
) -> None:
    """Make the score of each user's own items minus infinity, in place, but for the target's."""
    own = scores.gather(1, targets[:, None]).clone()
    for row, history in enumerate(past):
        scores[row, history.to(scores.device)] = -math.inf
    scores.scatter_(1, targets[:, None], own)
