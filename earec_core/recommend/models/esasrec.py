"""eSASRec (Tikhonovich et al., RecSys 2025, arXiv 2508.06450): SASRec's objective, LiGR layers, a sampled softmax.

Symbols: b users of a batch, s positions, m predictions, c negatives of each, d the model's width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.recommend.models.transformer import SelfAttention, TransformerRecommender

NEGATIVES = 256
"""What the authors chose for each of their data sets."""


def esasrec_config(config: RecommenderConfig) -> RecommenderConfig:
    """The settings with the authors' number of negatives where they name none."""
    return config.model_copy(update={"negatives": config.negatives or NEGATIVES})


class LiGRBlock(SelfAttention):
    """A layer of LiGR (Borisyuk et al., arXiv 2502.03417): pre-norm, its residuals gated, SwiGLU inside.

    h = h + sigmoid(W_1 h + b_1) * MHA(LN(h));  h = h + sigmoid(W_2 h + b_2) * SwiGLU(LN(h)), where SwiGLU(x) =
    D (silu(G x) * U x) of width `inner` has no biases (Shazeer, arXiv 2002.05202). Dropout is as in eSASRec's
    release: of attention weights, inside the SwiGLU, and of what a gate multiplies.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__(config)
        d = config.dim
        self.norm_attention, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.gate_attention, self.gate = nn.Linear(d, d), nn.Linear(d, d)
        self.up = nn.Linear(d, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, d, bias=False)
        self._draw()

    def forward(
        self, h: Float[Tensor, "b s d"], at: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b _ d"]:
        attended = self.dropout(self._attention(self.norm_attention(h), at))
        h = self._own(h, at)
        h = h + self.gate_attention(h).sigmoid() * attended
        swish, linear = self.up(self.norm(h)).chunk(2, dim=-1)
        inner = self.dropout(F.silu(swish) * linear)
        changed: Tensor = h + self.gate(h).sigmoid() * self.dropout(self.down(inner))
        return changed


class ESASRec(TransformerRecommender):
    """The transformer of LiGR's layers; each prediction has its own sample of negatives, drawn with replacement."""

    block = LiGRBlock

    def _sample(self, predictions: int, population: int, count: int) -> Int[Tensor, "m c"]:
        return torch.randint(population, (predictions, count), device=self.positions.device)
