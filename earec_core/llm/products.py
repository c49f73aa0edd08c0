"""A frozen linear layer with LoRA as one step of autograd: y = W x + s B (A x).

The input is cast once to the type that is computed in and kept once for the backward pass, where plain layers would
do both for W and for A, and so for each of the layers that read the same input.
Symbols: n positions, r the rank.
"""

from __future__ import annotations

from threading import local
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.llm.packed import PackedLinear


class Casts(local):
    """The last input that a thread cast: attention's three projections, or a gated network's two, read the same."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in another type."""
        if x.dtype == dtype or x.is_inference():
            return x.to(dtype)
        if self._of is None or self._of[0] is not x or self._of[1] != x._version:
            self._of = (x, x._version, x.detach().to(dtype))
        return self._of[2]

    def forget(self) -> None:
        """Let go of the last input."""
        self._of = None


class LoraLinear:
    """What a frozen linear layer with LoRA computes, in autocast's type where that is on.

    Args:
        base: the frozen layer.
        a, b: the factors [r, d_in] and [d_out, r].
        scale: s.
        casts: shared by the layers of a model.
    """

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, scale: float, casts: Casts) -> None:
        self._base, self._a, self._b, self._scale, self._casts = base, a, b, scale, casts

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        kind = x.device.type
        # The meta device, where shapes alone are worked out, has no autocast.
        lower = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if lower else x.dtype
        cast = self._casts(x, dtype)
        base, packed = self._base, self._base if isinstance(self._base, PackedLinear) else None
        y: Tensor = _Product.apply(x, cast, base.weight, base.bias, self._a, self._b, self._scale, packed)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _: Float[Tensor, "*n d_in"],
        cast: Float[Tensor, "*n d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        a: Float[Tensor, "r d_in"],
        b: Float[Tensor, "d_out r"],
        scale: float,
        packed: PackedLinear | None,
    ) -> Float[Tensor, "*n d_out"]:
        dtype = cast.dtype
        rows = cast.reshape(-1, cast.shape[-1])
        weight, a, b = weight.to(dtype), a.to(dtype), b.to(dtype)
        inner = rows @ a.T
        # No view of a matrix: some architectures change what a layer gives in place, which autograd forbids of one.
        y = cast.new_empty(*cast.shape[:-1], len(weight))
        matrix = y.view(-1, len(weight))
        if bias is None:
            torch.mm(rows, weight.T, out=matrix)
        else:
            torch.addmm(bias.to(dtype), rows, weight.T, out=matrix)
        matrix.addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(rows, inner, None if packed else weight, a, b)
        ctx.scale, ctx.packed = scale, packed
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, kept, a, b = ctx.saved_tensors
        weight = ctx.packed.weight.to(rows.dtype) if kept is None else kept
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        through = (grad @ b) * ctx.scale
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (grad @ weight).addmm_(through, a).view(*grads[0].shape[:-1], -1)
        d_b = (grad.T @ inner) * ctx.scale
        return d_x, None, None, None, through.T @ rows, d_b, None, None
