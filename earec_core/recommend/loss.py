"""Eq. 8: cross-entropy over the whole catalog, fused; and an estimate of it from a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class FullSoftmax(torch.autograd.Function):
    """Cross-entropy of every prediction's target among all items, summed, without ever holding all the logits.

    Logits are made, turned into their own gradient and used for both factors' gradients chunk by chunk, in
    one buffer that stays in the processor's cache. (Liger Kernel's fused linear cross-entropy is the idea.) Under
    autocast the three products are of its type; logits, their softmax and the sums of gradients stay float32.
    """

    chunk_elements, chunk_elements_low = 1 << 19, 1 << 21

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "m d"], items: Float[Tensor, "n d"], targets: Int[Tensor, " m"]
    ) -> Float[Tensor, ""]:
        """The loss of logits `states @ items.T`; a target is an item's row."""
        low = _autocast(states.device)
        size = FullSoftmax.chunk_elements if low is None else FullSoftmax.chunk_elements_low
        rows = max(1, size // len(items))
        buffer = torch.empty(rows, len(items), device=items.device)
        d_states, d_items = (torch.zeros_like(factor, dtype=torch.float32) for factor in (states, items))
        total = torch.zeros((), device=states.device)
        if low is not None:
            states, items = states.to(low), items.to(low)
        for start in range(0, len(states), rows):
            h, y = states[start : start + rows], targets[start : start + rows, None]
            logits = buffer[: len(h)]
            if low is None:
                torch.mm(h, items.T, out=logits)
            else:
                logits.copy_(h @ items.T)
            logits.sub_(logits.amax(1, keepdim=True))
            shifted = logits.gather(1, y)
            weights = logits.exp_()
            sums = weights.sum(1, keepdim=True)
            total += (sums.log() - shifted).sum()
            weights.div_(sums)
            weights.scatter_add_(1, y, torch.full_like(shifted, -1.0))
            if low is None:
                torch.mm(weights, items, out=d_states[start : start + len(h)])
                d_items.addmm_(weights.T, h)
            else:
                weights = weights.to(low)
                d_states[start : start + len(h)] = weights @ items
                d_items += weights.T @ h
        ctx.save_for_backward(d_states, d_items)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_states, d_items = ctx.saved_tensors
        return d_states * grads[0], d_items * grads[0], None


def _autocast(device: torch.device) -> torch.dtype | None:
    """The type of products that autocast asks for on a device, where it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def sampled_softmax(
    states: Float[Tensor, "m d"],
    items: Float[Tensor, "k d"],
    targets: Int[Tensor, " m"],
    negatives: Int[Tensor, "*m c"],
    population: int,
) -> Float[Tensor, ""]:
    """Cross-entropy of every prediction's target, summed, where a uniform sample stands for its competitors.

    A sampled competitor counts for `population` / c of them, so that the sum under the logarithm is in expectation
    that of the whole softmax (Bengio & Senecal, 2003). A target does not compete with itself.

    Args:
        items: those that occur here.
        targets: a row of `items` each.
        negatives: rows of `items`: one sample for all predictions, or each its own.
        population: how many items they were drawn from.
    """
    own = (states * items[targets]).sum(-1, keepdim=True)
    if negatives.dim() == 1:
        others = (states @ items[negatives].T).float()
    else:
        others = (F.embedding(negatives, items) @ states[:, :, None]).squeeze(2).float()
    others = others + math.log(population / negatives.shape[-1])
    others = others.masked_fill(negatives == targets[:, None], -torch.inf)
    first = torch.zeros_like(targets)
    return F.cross_entropy(torch.cat([own, others], dim=1), first, reduction="sum")
