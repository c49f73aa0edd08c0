"""Projectors that most modalities need; a plugin may bring its own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from earec_core.modality.contract import Encoded, Projector


class IdentityProjector(Projector):
    """For an encoder that already speaks the LLM's word embeddings (text)."""

    def forward(self, x: Encoded) -> Encoded:
        return x


class MlpProjector(Projector):
    """LayerNorm, then `layers` linear maps with GELU between them (LLaVA-1.5's mlp2x_gelu at 2).

    Args:
        d_enc: width of the encoder's tokens.
        d_llm: width of the LLM's word embeddings.
        tokens: slot positions made from each encoder token.
        layers: linear maps, at least 1.
        norm: whether the LayerNorm stands in front.
    """

    def __init__(
        self, d_enc: int, d_llm: int, *, tokens: int = 1, layers: int = 2, norm: bool = True
    ) -> None:
        super().__init__()
        self.d_llm, self.tokens = d_llm, tokens
        self.norm = nn.LayerNorm(d_enc) if norm else nn.Identity()
        widths = [d_enc] + [d_llm] * (layers - 1)
        hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.GELU())]
        self.hidden = nn.Sequential(*hidden)
        self.out = nn.Linear(widths[-1], d_llm * tokens)

    def forward(self, x: Encoded) -> Encoded:
        b, t, _ = x.h.shape
        h = self.out(self.hidden(self.norm(x.h))).reshape(b, t * self.tokens, self.d_llm)
        mask = x.mask.repeat_interleave(self.tokens, dim=1)
        return Encoded(h * mask[..., None], mask)

    @torch.no_grad()
    def calibrate(self, x: Encoded, rms: float) -> None:
        y = self(x)
        scale = rms / y.h[y.mask].square().mean().sqrt().clamp_min(1e-8)
        self.out.weight.mul_(scale)
        self.out.bias.mul_(scale)
