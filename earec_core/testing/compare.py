"""Shapes of what a modality's parts give, and whether two results are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from earec_core.modality import Encoded
from earec_core.testing.clauses import require

TOLERANCE = 1e-5
"""Largest difference of two results that must be the same but for floating-point rounding, relative to 1."""


def shaped(encoded: Any, b: int, d: int, what: str) -> None:
    """Fail unless an encoder's or projector's output is (b n d) with a mask (b n) of bool."""
    require(
        isinstance(encoded, tuple) and len(encoded) == 2 and all(isinstance(x, Tensor) for x in encoded),
        f"The {what} must give an Encoded(h, mask) of two tensors, not a {type(encoded).__name__}.",
    )
    h, mask = encoded
    require(
        h.ndim == 3 and (h.shape[0], h.shape[2]) == (b, d) and h.is_floating_point(),
        f"The {what} must give h of floats (b n d), here ({b} n {d}), but it gives {h.dtype} {tuple(h.shape)}.",
    )
    require(
        mask.dtype == torch.bool and mask.shape == h.shape[:2],
        f"The {what} must give a bool mask for h's first two dimensions {tuple(h.shape[:2])}, but it gives "
        f"{mask.dtype} {tuple(mask.shape)}.",
    )


def states(module: torch.nn.Module) -> Mapping[str, Tensor]:
    """Copies of a module's parameters and buffers, those that are not saved included."""
    return {
        name: tensor.detach().clone()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that the other has not, or has otherwise."""
    return [name for name, t in one.items() if name not in other or not torch.equal(t, other[name])]


def rows(encoded: Encoded) -> list[Tensor]:
    """Each item's positions, padding left out."""
    return [h[mask] for h, mask in zip(encoded.h, encoded.mask, strict=True)]


def same(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding; NaN is equal to nothing."""
    if one.shape != other.shape:
        return False
    size = max(1.0, float(one.abs().max())) if one.numel() else 1.0
    return bool(((one - other).abs() <= TOLERANCE * size).all())


def difference(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"{tuple(one.shape)} instead of {tuple(other.shape)}"
    return f"by up to {float((one - other).abs().max()):.2g}"
