"""Whether two models find the same items near each other."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from earec_core.artifacts import ItemVectors
from earec_core.catalog import random_part
from earec_core.compare.rows import Row, contrast, corrected, overlap
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.scaling import scaled

NEAREST = 10
_ITEMS, _AT_ONCE = 2000, 256


@torch.inference_mode()
def neighbours(a: ItemVectors, b: ItemVectors, config: RecommenderConfig, seed: int) -> list[Row]:
    """The overlap of each item's ten nearest by a and by b, and the cosines of these, over 2,000 items at most.

    Vectors are compared as `config.scaling` leaves them, as in `earec_core.recommend.similar`. Items that have no
    vector (zeros) in one of the two take no part.

    Raises:
        UsageError: fewer than two items have vectors in both.
    """
    tables = [torch.from_numpy(vectors.vectors) for vectors in (a, b)]
    known = (tables[0].any(1) & tables[1].any(1)).nonzero().squeeze(1)
    n = len(known)
    if n < 2:
        raise UsageError("Fewer than two items have vectors by both models.", "Compare on a larger dataset.")
    units = [F.normalize(scaled(table[known], config), dim=1) for table in tables]
    rows, k = torch.from_numpy(random_part(n, _ITEMS, seed)), min(NEAREST, n - 1)
    by_a, by_b = (_nearest(unit, rows, k) for unit in units)
    chance, what = k / (n - 1), f"nearest {k} items"
    shared = overlap("vectors", what, by_a.numpy(), by_b.numpy(), chance)
    cosines = [
        contrast("vectors", f"cosine to {what} by {name}", *(_cosines(unit, rows, by) for unit in units))
        for name, by in (("A", by_a), ("B", by_b))
    ]
    return [shared, *corrected(cosines)]


def _nearest(unit: Float[Tensor, "n d"], rows: Int[Tensor, " r"], k: int) -> Int[Tensor, "r k"]:
    """The k other items of the largest cosine to each row's."""
    found = []
    for some in torch.split(rows, _AT_ONCE):
        cosines = unit[some] @ unit.T
        cosines[torch.arange(len(some)), some] = -torch.inf
        found.append(cosines.topk(k).indices)
    return torch.cat(found)


def _cosines(
    unit: Float[Tensor, "n d"], rows: Int[Tensor, " r"], nearest: Int[Tensor, "r k"]
) -> Float[np.ndarray, " r"]:
    """The mean cosine of each row's item to the items that stand for it."""
    parts = zip(torch.split(rows, _AT_ONCE), torch.split(nearest, _AT_ONCE), strict=True)
    means = [torch.einsum("rd,rkd->rk", unit[some], unit[near]).mean(1) for some, near in parts]
    cosines: np.ndarray = torch.cat(means).double().numpy()
    return cosines
