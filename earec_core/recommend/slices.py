"""Figures for parts of the users: by how well the target is known, and by how much the user has done."""

from __future__ import annotations

from typing import Any

import numpy as np

from earec_core.catalog import LeaveOneOut
from earec_core.metrics.ranking import Metrics
from earec_core.recommend.evaluate import Part

TOP = 10
_COLD, _SHORT = 5, 5


def slices(metrics: Metrics, split: LeaveOneOut, part: Part, n_items: int) -> list[dict[str, Any]]:
    """`Metrics.summary` of all users and of parts of them; a part without users has no row.

    The target has no training interaction, fewer than 5 or more; the history before it has fewer than 5 items or
    more.
    """
    counts = np.bincount(split.train.items, minlength=n_items)
    known = counts[getattr(split, part)[metrics.users]]
    lengths = np.diff(split.train.offsets)[metrics.users] + (part == "test")
    parts = {
        "all": np.ones(len(known), dtype=bool),
        "target never trained on": known == 0,
        f"target with 1 to {_COLD - 1}": (known > 0) & (known < _COLD),
        f"target with {_COLD} or more": known >= _COLD,
        f"history below {_SHORT}": lengths < _SHORT,
        f"history of {_SHORT} or more": lengths >= _SHORT,
    }
    return [{"slice": name, **metrics.of(chosen).summary()} for name, chosen in parts.items() if chosen.any()]


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
