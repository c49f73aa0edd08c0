"""A catalog's items on a plane, and in groups by their categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

MOST = 3000
_GROUPS = 8
_LEVELS = re.compile(r"\s*[,;|>/]\s*")


def sampled(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """`MOST` of some rows at most, in their order, the same each time."""
    if len(rows) <= MOST:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MOST, replace=False))


def plane(vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m 2"]:
    """Items by the two leading directions of their standardised vectors, each coordinate from 0 to 1.

    Whitened, all directions are of one size and none leads: these are the two that led before, made equal in size.
    The largest loading of each is positive, so that the same vectors give the same map.
    """
    from scipy.sparse.linalg import svds

    x = vectors.astype(np.float64)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    if min(x.shape) < 3 or not x.any():
        return np.full((len(x), 2), 0.5)
    u, s, vt = svds(x, k=2, v0=np.ones(min(x.shape)))
    order = np.argsort(-s)
    u, vt = u[:, order], vt[order]
    u = u * np.sign(vt[np.arange(2), np.abs(vt).argmax(1)])
    low, high = u.min(0), u.max(0)
    return np.asarray((u - low) / np.maximum(high - low, 1e-12))


def groups(categories: Sequence[str | None]) -> tuple[list[str], list[int | None]]:
    """The most frequent categories, and which of them each item is in.

    A category is read level by level (`Office > Pens`, `Action, Comedy`); the first level in which items differ
    is taken.
    """
    split = [_LEVELS.split(one.strip()) if one else [] for one in categories]
    for level in range(max(map(len, split), default=0)):
        words = [parts[level] if len(parts) > level else None for parts in split]
        counts = Counter(filter(None, words))
        if len(counts) > 1:
            names = [name for name, _ in counts.most_common(_GROUPS)]
            places = {name: place for place, name in enumerate(names)}
            return names, [places.get(word) if word else None for word in words]
    return [], [None] * len(split)
