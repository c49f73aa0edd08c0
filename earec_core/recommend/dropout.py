"""Dropout that costs little on a processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """`nn.Dropout` from 16 random bits an element; torch's own draws took a fifth of an epoch on a processor.

    Args:
        p: the probability of a zero, kept to 1/65536; what stays is divided by 1 - p.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept: Tensor = x * (bits >= round(self.p * 2**16) - 2**15) / (1 - self.p)
        return kept
