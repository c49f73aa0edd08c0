"""Nearest items by inner product, with FAISS."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from earec_core.recommend.model import SequenceModel, last_states


@torch.inference_mode()
def topk(
    model: SequenceModel, histories: list[Int[Tensor, " _"]], k: int, *, exclude_seen: bool = True
) -> tuple[list[Int[np.ndarray, " _"]], list[Float[np.ndarray, " _"]]]:
    """The k best items after each history, by an exact FAISS index over the model's item table.

    Args:
        histories: item rows of each user in time order.
        k: items wanted; fewer come back only where the catalog has no more.
        exclude_seen: leave out the items of the history.

    Returns:
        For each user the item rows, best first, and their scores.
    """
    import faiss

    items = model.table()
    users = last_states(model, items, histories)
    if model.config.similarity == "cosine":
        items, users = F.normalize(items, dim=-1), F.normalize(users, dim=-1) / model.config.temperature
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(np.ascontiguousarray(items.float().cpu().numpy()))
    seen = [set(history.tolist()) if exclude_seen else set() for history in histories]
    wanted = min(len(items), k + max(map(len, seen)))
    scores, rows = index.search(np.ascontiguousarray(users.float().cpu().numpy()), wanted)
    best = []
    for u, known in enumerate(seen):
        keep = [j for j in range(wanted) if int(rows[u, j]) not in known][:k]
        best.append((rows[u, keep], scores[u, keep]))
    return [r for r, _ in best], [s for _, s in best]
