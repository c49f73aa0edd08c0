"""Frozen item vectors through a mixture of linear experts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.recommend.tables.base import Items, TableKind, VectorTable, small

_EXPERTS = 8


class MoeTable(VectorTable):
    """The adaptor of UniSRec (Hou et al., KDD 2022, arXiv 2206.05941): experts W_k (x - b_k), mixed by a gate.

    The gate is softmax of x W_g, while training with noise of a learned deviation, softplus(x W_n). Each expert
    drops some of what it reads.
    """

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__(config, items)
        d_in = self.vectors.shape[1]
        self.centres = nn.Parameter(torch.zeros(_EXPERTS, d_in))
        self.experts = nn.ModuleList(small(nn.Linear(d_in, config.dim, bias=False)) for _ in range(_EXPERTS))
        self.gate, self.noise = (nn.Parameter(torch.zeros(d_in, _EXPERTS)) for _ in range(2))

    def map(self, vectors: Float[Tensor, "k d_in"]) -> Float[Tensor, "k d"]:
        logits = vectors @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(vectors @ self.noise) + 1e-2)
        weights = logits.softmax(-1)
        mixed = [
            weights[:, k, None] * expert(self.dropout(vectors) - self.centres[k])
            for k, expert in enumerate(self.experts)
        ]
        return torch.stack(mixed).sum(0)


MOE = TableKind("moe", "frozen vectors through UniSRec's mixture of experts", True, MoeTable)
