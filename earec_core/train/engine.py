"""What runs a training step: the seam between a training loop and how it is spread over devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from earec_core.train.processes import Processes


class Engine(Protocol):
    """Runs the steps of one training."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in the model's place; its `forward` is the loss."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Around every part of a step but the last, with whose gradients those of all are exchanged."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to that of the step."""

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        """Clip the gradient, move the parameters, forget the gradient.

        Args:
            held: parameters that are not moved, though their gradient counts when it is clipped.
        """


class TorchEngine:
    """Plain torch; over several processes `DistributedDataParallel`, which averages their gradients.

    Args:
        optimizer: over all trained parameters.
        clip: largest gradient norm.
        processes: that train together.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float, processes: Processes | None = None
    ) -> None:
        self._optimizer, self._clip = optimizer, clip
        self._processes = processes or Processes()
        self._distributed: DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        if self._processes.size == 1:
            return model
        self._distributed = DistributedDataParallel(model)
        return self._distributed

    def no_sync(self) -> AbstractContextManager[None]:
        return self._distributed.no_sync() if self._distributed is not None else nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], self._clip)
        for parameter in held:
            parameter.grad = None
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
