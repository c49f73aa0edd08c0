"""UniSRec (Hou et al., KDD 2022, arXiv 2206.05941): pre-trained by contrast on source catalogs, tuned on a target.

Symbols: m predictions of a batch, w its windows (sequences), d the model's width, tau the temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.batches import transitions
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.tables import PLUS_IDS


def unisrec_config(config: RecommenderConfig) -> RecommenderConfig:
    """The settings with what makes a model UniSRec: its adaptor (`moe`, with ids or without) and the cosine.

    Raises:
        UsageError: ids are to be pre-trained, which no other catalog could use.
    """
    ids = PLUS_IDS if config.table.endswith(PLUS_IDS) else ""
    if config.pretrain and ids:
        raise UsageError(
            "Pre-training takes no embeddings of ids.",
            "Leave recommender.table out, and add +ids with --from.",
        )
    return config.model_copy(update={"table": f"moe{ids}", "similarity": "cosine"})


class UniSRec(TransformerRecommender):
    """The transformer over the mixture-of-experts adaptor, scored by cosine / tau.

    With `recommender.pretrain` it is trained by two contrastive losses, for other catalogs to start from; else by
    the softmax over the catalog, and where it started from another one, the item table alone: inductive on vectors,
    transductive with ids.
    """

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        super().transfer_from(tensors)
        if not self.config.pretrain:
            self.requires_grad_(False)
            self.table.requires_grad_()

    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """In pre-training the sequence-item plus `contrast_weight` x the sequence-sequence loss, both means.

        Sequence-item: the state at every position with its next item, among the batch's next items. Sequence-
        sequence: the last state of every window with that of the window less some of its items, among the batch's
        windows.
        """
        if not self.config.pretrain:
            return super().loss(windows)
        inputs, places, targets = transitions(windows, self.positions.device)
        items = self.items()
        states = self(items, inputs).flatten(0, 1)[places]
        loss = contrast(states, items[targets], targets, self.config.temperature)
        ends = torch.tensor([len(window) - 1 for window in windows], device=states.device).cumsum(0) - 1
        views = self.users([torch.from_numpy(self._thinned(window[:-1])) for window in windows], items)
        pairs = contrast(states[ends], views, targets[ends], self.config.temperature)
        return loss + self.config.contrast_weight * len(targets) / len(windows) * pairs, len(targets)

    def _thinned(self, sequence: Int[np.ndarray, " s"]) -> Int[np.ndarray, " t"]:
        """A sequence less each of its items with probability `item_drop`; its first stays."""
        kept = torch.rand(len(sequence)) >= self.config.item_drop
        kept[0] = True
        thinned: Int[np.ndarray, " t"] = sequence[kept.numpy()]
        return thinned


def contrast(
    queries: Float[Tensor, "m d"], keys: Float[Tensor, "m d"], ids: Int[Tensor, " m"], temperature: float
) -> Float[Tensor, ""]:
    """-log softmax of each query's cosine / tau with its own key among all keys of the batch, summed.

    Args:
        ids: the next item of each; a key of the same next item as the query's is no negative of it.
    """
    logits = (F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T).float() / temperature
    own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    logits = logits.masked_fill((ids[:, None] == ids) & ~own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(ids), device=ids.device), reduction="sum")
