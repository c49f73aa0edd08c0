"""Eq. 8: cross-entropy over the whole catalog, fused."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class FullSoftmax(torch.autograd.Function):
    """Cross-entropy of every prediction's target among all items, summed, without ever holding all the logits.

    Logits are made, turned into their own gradient and used for both factors' gradients chunk by chunk, in
    one buffer that stays in the processor's cache. (Liger Kernel's fused linear cross-entropy is the idea.)
    """

    chunk_elements = 1 << 19

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "m d"], items: Float[Tensor, "n d"], targets: Int[Tensor, " m"]
    ) -> Float[Tensor, ""]:
        """The loss of logits `states @ items.T`; a target is an item's row."""
        rows = max(1, FullSoftmax.chunk_elements // len(items))
        buffer = torch.empty(rows, len(items), device=items.device)
        d_states, d_items = torch.empty_like(states), torch.zeros_like(items)
        total = states.new_zeros(())
        for start in range(0, len(states), rows):
            h, y = states[start : start + rows], targets[start : start + rows, None]
            logits = torch.mm(h, items.T, out=buffer[: len(h)])
            logits.sub_(logits.amax(1, keepdim=True))
            shifted = logits.gather(1, y)
            weights = logits.exp_()
            sums = weights.sum(1, keepdim=True)
            total += (sums.log() - shifted).sum()
            weights.div_(sums)
            weights.scatter_add_(1, y, torch.full_like(shifted, -1.0))
            torch.mm(weights, items, out=d_states[start : start + len(h)])
            d_items.addmm_(weights.T, h)
        ctx.save_for_backward(d_states, d_items)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_states, d_items = ctx.saved_tensors
        return d_states * grads[0], d_items * grads[0], None
