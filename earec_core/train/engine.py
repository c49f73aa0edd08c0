"""What runs a training step: the seam between a training loop and how it is spread over devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """Runs the steps of one training."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in the model's place; its `forward` is the loss."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to that of the step."""

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        """Clip the gradient, move the parameters, forget the gradient.

        Args:
            held: parameters that are not moved, though their gradient counts when it is clipped.
        """


class TorchEngine:
    """One process, plain torch.

    Args:
        optimizer: over all trained parameters.
        clip: largest gradient norm.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self._optimizer, self._clip = optimizer, clip

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], self._clip)
        for parameter in held:
            parameter.grad = None
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
