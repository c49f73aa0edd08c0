"""Which items are like an item, by their vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from earec_core.artifacts import ItemVectors
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.scaling import scaled


def similar(vectors: ItemVectors, row: int, k: int, config: RecommenderConfig) -> list[tuple[int, float]]:
    """The rows of the k items of the largest cosine to an item, and these, best first; the item itself left out.

    An LLM's vectors all point the same way (cosines of 0.98 and above), so they are compared as `config.scaling`
    leaves them, whitened by default. Items that have no vector (zeros) take no part.

    Raises:
        UsageError: the item has none, or see `scaled`.
    """
    table = torch.from_numpy(vectors.vectors)
    known = table.any(1).nonzero().squeeze(1)
    place = (known == row).nonzero()
    if not len(place):
        raise UsageError("The item has no vector: the model read none of its modalities.", "Name another.")
    directions = F.normalize(scaled(table[known], config), dim=1)
    cosines, places = (directions @ directions[int(place)]).sort(descending=True, stable=True)
    found = zip(known[places].tolist(), cosines.tolist(), strict=True)
    return [(other, cosine) for other, cosine in found if other != row][:k]
