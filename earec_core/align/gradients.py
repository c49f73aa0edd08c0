"""The gradient of a batch: its parts one after another through an engine, or side by side on a processor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from earec_core.align.contrast import Contrast
from earec_core.align.samples import parts
from earec_core.aligned.model import AlignedModel, PromptLoss
from earec_core.aligned.prompts import Sample
from earec_core.config import AlignConfig
from earec_core.llm.backbone import Spliced
from earec_core.llm.lanes import lanes, side_by_side
from earec_core.train.engine import Engine
from earec_core.train.processes import Processes

_POSITIONS = 128
"""Of a part that runs beside others, at least: fewer are slower side by side than together."""

Losses = tuple[float, float]
"""A part's loss and that of its pairs, as shares of the batch's."""


class Gradients:
    """Adds the gradients of batches to the parameters.

    Attributes:
        loss: what an engine calls in the model's place; the model itself where there is no wrapper.

    Args:
        model: its backbone has the adapter on.
        parameters: that are trained, and such as are frozen.
        config: how large the parts are, and what pairs weigh.
        engine: runs the parts that are not side by side.
        processes: that train together, this one among them.
        contrast: the second loss; None: Eq. 3 alone.
    """

    def __init__(
        self,
        model: AlignedModel,
        parameters: Sequence[nn.Parameter],
        config: AlignConfig,
        engine: Engine,
        processes: Processes,
        contrast: Contrast | None,
    ) -> None:
        self.loss: nn.Module = model
        self._model, self._config, self._engine, self._processes = model, config, engine, processes
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._contrast = contrast
        self._beside: PromptLoss | None = None if contrast is None else contrast.loss

    def lanes(self, batch: Sequence[Sample]) -> int:
        """Parts of a batch that are run side by side.

        One, where a wrapper counts the passes, where they draw random numbers, and where blocks are computed again.
        """
        backbone = self._model.backbone
        random = backbone.adapter is not None and backbone.adapter.random
        if self.loss is not self._model or random or backbone.checkpointing:
            return 1
        return min(len(batch), lanes(backbone, sum(sample.length for sample in batch), least=_POSITIONS))

    def parts_of(self, batch: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """What goes through the model together of this process's part of a batch."""
        most, tokens, number = self._config.micro_batch, self._config.micro_tokens, self.lanes(batch)
        if number > 1 and self._contrast is None:  # whose negatives are a part's own
            most = math.ceil(min(most or len(batch), len(batch)) / number)
            tokens = tokens and max(1, tokens // number)
        return parts(
            self._processes.share_of(batch),
            most=most,
            tokens=tokens,
            together=1 if self._contrast is None else 2,  # companions stay side by side
        )

    def add(self, batch: Sequence[Sample]) -> Losses:
        """Add a batch's gradients up, part by part; its loss and that of its pairs."""
        mine = list(self.parts_of(batch))
        losses = self._side_by_side(batch, mine) if self.lanes(batch) > 1 else self._in_turn(batch, mine)
        loss, pairs = map(sum, zip(*losses, strict=True))
        return self._processes.sum(loss), pairs

    def _in_turn(self, batch: Sequence[Sample], mine: Sequence[Sequence[Sample]]) -> Iterator[Losses]:
        """The parts one after another, each through the engine."""
        passes = self._processes.most(len(mine)) if self._engine.in_step else max(1, len(mine))
        for number in range(passes):
            # Who has fewer parts, or none, takes part in what all do together with one that does not count.
            counted = number < len(mine)
            samples = mine[number] if counted else batch[:1]
            with nullcontext() if number == passes - 1 else self._engine.no_sync():
                whole, said = self._weighed(self.loss(samples, self._beside), batch)
                # Gradients are averaged over the processes.
                self._engine.backward(whole * self._processes.size if counted else whole * 0)
            yield said if counted else (0.0, 0.0)

    def _side_by_side(self, batch: Sequence[Sample], mine: Sequence[Sequence[Sample]]) -> Iterator[Losses]:
        """The parts in threads of their own; gradients are added in the parts' order, whichever ends first."""

        def run(part: tuple[Sequence[Sample], Spliced]) -> tuple[Losses, Sequence[Tensor | None]]:
            samples, spliced = part
            whole, said = self._weighed(self._model.loss_of(spliced, samples, self._beside), batch)
            return said, torch.autograd.grad(whole, self._parameters, allow_unused=True)

        spliced = ((samples, self._model.splice_samples(samples)) for samples in mine)
        for said, gradients in side_by_side(run, spliced, self.lanes(batch)):
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            yield said

    def _weighed(self, losses: Tensor, batch: Sequence[Sample]) -> tuple[Tensor, Losses]:
        """What of a part's losses is to be lowered, and both."""
        total = sum(len(sample.response) for sample in batch)
        if self._contrast is None:
            part = losses / total
            return part, (part.item(), 0.0)
        part, beside = losses[0] / total, losses[1] / len(batch)
        return part + self._config.pairs * beside, (part.item(), beside.item())
