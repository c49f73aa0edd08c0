"""What a modality's encoder or projector gives, its shape checked, and whether two results are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from earec_core.modality import Encoded, Encoder, Projector
from earec_core.testing.clauses import clause

TOLERANCE = 1e-5
"""Largest difference of two results that must be the same but for floating-point rounding, relative to 1."""


@torch.no_grad()
def forward(part: Encoder | Projector, inputs: Any, b: int, d: int) -> Encoded:
    """What a part makes of b inputs; fails unless that is (b n d) with a bool mask (b n)."""
    name = "encoder" if isinstance(part, Encoder) else "projector"
    contract = f"The {name} must give an Encoded of floats h (b n d), here ({b} n {d}), and a bool mask (b n)"
    with clause(contract) as require:
        encoded = part(inputs)
        pair = isinstance(encoded, tuple) and len(encoded) == 2
        require(pair and all(isinstance(x, Tensor) for x in encoded), f"it gives a {type(encoded).__name__}")
        h, mask = encoded
        shaped = h.ndim == 3 and (h.shape[0], h.shape[2]) == (b, d) and h.is_floating_point()
        require(shaped, f"h is {h.dtype} {tuple(h.shape)}")
        shaped = mask.dtype == torch.bool and mask.shape == h.shape[:2]
        require(shaped, f"for h {tuple(h.shape)} the mask is {mask.dtype} {tuple(mask.shape)}")
    return Encoded(h, mask)


def states(module: torch.nn.Module) -> Mapping[str, Tensor]:
    """Copies of a module's parameters and buffers, those that are not saved included."""
    return {
        name: tensor.detach().clone()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of the two has, or that are not the same bits in both."""
    return [
        name
        for name in {**before, **after}
        if not (name in before and name in after and torch.equal(before[name], after[name]))
    ]


def rows(encoded: Encoded) -> list[Tensor]:
    """Each item's positions, padding left out."""
    return [h[mask] for h, mask in zip(encoded.h, encoded.mask, strict=True)]


def difference(tensor: Tensor, expected: Tensor) -> str:
    """How two tensors differ; "" if they are equal but for rounding. NaN is equal to nothing."""
    if tensor.shape != expected.shape:
        return f"{tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    distance = (tensor - expected).abs()
    return "" if (distance <= TOLERANCE * size).all() else f"by up to {float(distance.max()):.2g}"
