"""Figures for parts of the users: by how well the target is known, and by how much the user has done."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from earec_core.catalog import LeaveOneOut
from earec_core.metrics.ranking import Metrics
from earec_core.recommend.evaluate import Part

TOP = 10
_COLD, _SHORT = 5, 5
SLICES = {
    "all": "all users",
    "unseen": "target without a training interaction",
    "cold": f"target with 1 to {_COLD - 1}",
    "warm": f"target with {_COLD} or more",
    "short": f"fewer than {_SHORT} items before",
    "long": f"{_SHORT} or more before",
}
"""Parts of the users: by how often training saw the target, and by how much the user did before it."""


def users_of(
    users: Int[np.ndarray, " k"], split: LeaveOneOut, part: Part, n_items: int
) -> dict[str, Bool[np.ndarray, " k"]]:
    """Which of some users are in each slice; see `SLICES`."""
    known = np.bincount(split.train.items, minlength=n_items)[getattr(split, part)[users]]
    before = np.diff(split.train.offsets)[users] + (part == "test")
    return {
        "all": np.ones(len(users), dtype=bool),
        "unseen": known == 0,
        "cold": (known > 0) & (known < _COLD),
        "warm": known >= _COLD,
        "short": before < _SHORT,
        "long": before >= _SHORT,
    }


def slices(metrics: Metrics, split: LeaveOneOut, part: Part, n_items: int) -> list[dict[str, Any]]:
    """`Metrics.summary` of every slice that has users, with its name and what it is."""
    masks = users_of(metrics.users, split, part, n_items)
    return [
        {"slice": name, "what": SLICES[name], **metrics.of(mask).summary()}
        for name, mask in masks.items()
        if mask.any()
    ]


def breadth(metrics: Metrics, split: LeaveOneOut, n_items: int) -> dict[str, float]:
    """What the lists of all users together are made of.

    Args:
        metrics: with the best items.

    Returns:
        `coverage`, the part of the catalog that is in anybody's list; `popularity`, the mean over the recommended
        of the part of items with fewer training interactions (0.5 for items drawn at random, 1 for the best known).
    """
    assert metrics.top is not None  # noqa: S101 - see above
    counts = np.bincount(split.train.items, minlength=n_items)
    ranked = np.searchsorted(np.sort(counts), counts, "left") + np.searchsorted(
        np.sort(counts), counts, "right"
    )
    percentile = (ranked - 1) / (2 * max(1, n_items - 1))
    return {
        "coverage": round(len(np.unique(metrics.top)) / n_items, 6),
        "popularity": round(float(percentile[metrics.top].mean()), 6),
    }
