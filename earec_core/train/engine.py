"""What runs a training step: the seam between a training loop and how it is spread over devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from earec_core.artifacts import EngineRecord
from earec_core.config import EngineConfig
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.train.processes import Processes
from earec_core.train.zero import Zero


class Engine(Protocol):
    """Runs the steps of one training.

    Attributes:
        in_step: every pass over the model is one of all processes, so that all must make equally many, and each the
            same way through it.
        record: what it is, as the adapter's manifest has it.
    """

    in_step: bool
    record: EngineRecord

    def around(
        self, model: nn.Module, parameters: Collection[nn.Parameter]
    ) -> AbstractContextManager[nn.Module]:
        """For as long as a training lasts, what to call in the model's place; its `forward` is the loss.

        It goes on from what the optimizer holds by then.

        Args:
            parameters: that are whole in the model after the block.
        """

    def no_sync(self) -> AbstractContextManager[None]:
        """Around every part of a step but the last, with whose gradients those of all are exchanged."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to that of the step."""

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        """Clip the gradient, move the parameters, forget the gradient.

        Args:
            held: parameters that are not moved, though their gradient counts when it is clipped.
        """

    def value(self, parameter: nn.Parameter) -> Tensor:
        """A parameter, whole; asked for by all processes together."""

    def state(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        """What the optimizer knows of a parameter, whole; asked for by all processes together."""


MakeEngine = Callable[[torch.optim.AdamW, float, Processes], Engine]
"""An engine of an optimizer over all trained parameters, the largest gradient norm, and who trains together."""


class TorchEngine:
    """Plain torch; over several processes `DistributedDataParallel`, which averages their gradients.

    Args:
        optimizer: over all trained parameters.
        clip: largest gradient norm.
        processes: that train together.
    """

    in_step = False

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float, processes: Processes | None = None
    ) -> None:
        self._optimizer, self._clip = optimizer, clip
        self._processes = processes or Processes()
        self._distributed: DistributedDataParallel | None = None
        self.record = EngineRecord(name="torch", processes=self._processes.size)

    @contextmanager
    def around(self, model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[nn.Module]:
        if self._processes.size > 1:
            self._distributed = DistributedDataParallel(model)
        yield self._distributed or model

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

    def value(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def state(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        known: Mapping[str, Tensor] = self._optimizer.state.get(parameter, {})
        return known


def engine_of(config: EngineConfig) -> MakeEngine:
    """The engine that a run asks for.

    Raises:
        UsageError: its settings are of another engine, or contradict each other.
        MissingDependencyError: it is not installed.
    """
    if config.name == "torch":
        given = config.model_fields_set - {"name"}
        if given:
            raise UsageError(
                f"engine.{min(given)} is a setting of DeepSpeed, not of the engine torch.",
                "Say --engine deepspeed, or leave it out.",
            )
        return TorchEngine
    zero = Zero.of(config)
    if find_spec("deepspeed") is None:
        raise MissingDependencyError(
            "The engine deepspeed needs DeepSpeed, which is not installed.",
            "Run: pip install 'earec[deepspeed]'",
        )
    from earec_core.train.deepspeed import DeepSpeedEngine

    return partial(DeepSpeedEngine, zero=zero)
