"""MoRec: the items' encoder of text is trained with the sequence model (Yuan et al., SIGIR 2023).

Symbols: m distinct items of a batch, n items of the catalog, d the model's width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.recommend.batches import transitions
from earec_core.recommend.loss import FullSoftmax
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.tables.base import Items, ItemTable

_POSITIONS = 4096
"""Tokens that go through the encoder at once, padding included."""


class TextTable(ItemTable):
    """Items' texts through an encoder, a linear map and GELU.

    Args:
        config: `dim` and `encoder_layers`.
        items: with texts; their encoder is copied.
    """

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__()
        texts = items.read()
        self.tokens = texts.tokens
        self.encoder = copy.deepcopy(texts.encoder)
        self.encoder.normalised = False
        if config.encoder_layers is not None:
            self.encoder.train_last(config.encoder_layers, self.tokens, _POSITIONS)
        self.map = nn.Linear(self.encoder.width, config.dim)

    def of(self, rows: Sequence[int]) -> Float[Tensor, "m d"]:
        """Some items."""
        pooled = self.encoder.batched([self.tokens[row] for row in rows], _POSITIONS)
        return F.gelu(self.map(pooled).float())

    def forward(self) -> Float[Tensor, "n d"]:
        return self.of(range(len(self.tokens)))


class MoRec(TransformerRecommender):
    """The transformer over items that a pretrained encoder of text makes, both trained on what users chose next.

    What the authors do (arXiv 2303.13835, and their code): the first state of BERT or RoBERTa (the mean of OPT's),
    a linear map and GELU give an item; AdamW trains all of the encoder's layers at a rate of 1e-5 to 1e-4 and the
    rest at 1e-4; a prediction is scored against one item drawn at random (binary cross-entropy).

    Here the pooling is the encoder's own, and the rates are `encoder_lr` and `lr` (Adam). So that an epoch is
    affordable, each item of a batch is encoded once, and the items of the batch compete with each other, where
    others would have to be encoded for that alone: a softmax over them, each score less the log of an item's chance
    to be in the batch (in-batch negatives are corrected so by Yi et al., RecSys 2019). With `encoder_layers` the
    lower layers stay as they are, and what they say of each item is computed once.

    Args:
        table: the items' texts.
        config: sizes, similarity and rates.
        counts: training interactions of each item.
    """

    table: TextTable
    share: Tensor

    def __init__(self, table: TextTable, config: RecommenderConfig, counts: Int[Tensor, " n"]) -> None:
        super().__init__(table, config)
        self.register_buffer("share", counts / counts.sum(), persistent=False)

    @classmethod
    def build(cls, config: RecommenderConfig, items: Items) -> MoRec:
        """A new one for a catalog's items."""
        return cls(TextTable(config, items), config, items.counts)

    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """Cross-entropy of every position's next item among the items of the batch, corrected; their number."""
        device = self.positions.device
        inputs, places, targets = transitions(windows, device)
        rows = torch.from_numpy(np.unique(np.concatenate(windows))).to(device)
        items = self.table.of(rows.tolist())
        states = self(items, torch.searchsorted(rows, inputs)).flatten(0, 1)[places]
        drawn = sum(map(len, windows))
        chance = -torch.expm1(drawn * torch.log1p(-self.share[rows].clamp_max(1 - 1e-6)))
        queries = F.pad(self.queries(states), (0, 1), value=1.0)
        keys = torch.cat([self.keys(items), -chance.log()[:, None]], dim=1)
        loss: Tensor = FullSoftmax.apply(queries, keys, torch.searchsorted(rows, targets))  # type: ignore[no-untyped-call]
        return loss, len(targets)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder's at `encoder_lr`, all others at `lr`."""
        own = list(self.table.encoder.parameters())
        rest = [
            parameter for name, parameter in self.named_parameters() if not name.startswith("table.encoder.")
        ]
        return [{"params": rest}, {"params": own, "lr": self.config.encoder_lr}]

    def served(self) -> TransformerRecommender:
        """The transformer over the items as they are now: their texts are not encoded again."""
        return TransformerRecommender.stored(self.config, self.to_store()).to(self.positions.device)
