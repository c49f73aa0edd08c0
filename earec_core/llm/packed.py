"""Frozen linear layers in 4 bits, for training alone: NF4 of QLoRA (Dettmers et al., arXiv 2305.14314).

bitsandbytes packs and unpacks. Its own layer takes a way without a gradient on a processor in evaluation mode; this
one has one way.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.errors import MissingDependencyError

_BLOCK = 64
"""Weights that have one scale."""
PACKED_BYTES = 0.5 + 1 / _BLOCK
"""Of a weight, its part of a scale of 8 bits included."""


def check_packing() -> None:
    """Say so where `PackedLinear` cannot work.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "align.quantization=nf4 needs bitsandbytes, which is not installed.",
            "Run: pip install 'earec[4bit]'",
        )


class PackedLinear(nn.Linear):
    """What a linear layer computes, its weight in 4 bits and unpacked for as long as a product takes.

    Args:
        layer: the plain layer, on the device where it is to work; left as it is.
        dtype: what the weight is unpacked to.
    """

    codes: Tensor

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._functional: Any = import_module("bitsandbytes.functional")
        weight = layer.weight.data.to(dtype)
        codes, self._state = self._functional.quantize_4bit(
            weight, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("codes", codes)

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        """Whether its rows are whole blocks of weights that have one scale."""
        return layer.in_features % _BLOCK == 0

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """Unpacked anew each time."""
        unpacked: Tensor = self._functional.dequantize_4bit(self.codes, self._state)
        return unpacked

    def stored(self) -> tuple[Tensor, Tensor]:
        """What the weight is made of: codes and scales."""
        return self.codes, self._state.absmax

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        y: Tensor = _Frozen.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state.to(self.codes.device)
        return self


class _Frozen(torch.autograd.Function):
    """x W' whose way back unpacks W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*n d_in"], layer: PackedLinear) -> Float[Tensor, "*n d_out"]:
        ctx.layer = layer
        y: Tensor = x @ layer.weight.to(x.dtype).T
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.weight.to(grads[0].dtype), None
