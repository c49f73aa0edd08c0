"""Lambda by gradient descent: a softmax parameter, through the un-merged adapters, on the alignment loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.mixture import Mixture
from earec_core.search.objectives import Validation


@dataclass(frozen=True)
class Descent:
    """How lambda is learned; Adam on the logits, its rate falling to zero as half a cosine.

    Attributes:
        steps: gradient steps.
        batch_size: validation items a step.
        lr: rate of the logits at the start.
        per_layer: a weighting for every layer of the LLM.
        seed: of the batches.
    """

    steps: int = 18
    batch_size: int = 16
    lr: float = 0.8
    per_layer: bool = False
    seed: int = 0


def descend(
    mixture: Mixture,
    validation: Validation,
    config: Descent,
    done: Sequence[Mapping[str, Any]],
    record: Callable[[dict[str, Any]], bool],
) -> Float[Tensor, "l n"]:
    """Learn the weights.

    Args:
        done: the steps that a killed search had recorded; they are replayed from their gradients.
        record: called with each step's `step`, `loss`, `weights` (mean over layers) and `gradient`; returns
            whether the budget is spent.

    Returns:
        The weights, [layers or 1, adapters]; rows sum to 1.
    """
    n = len(mixture.names)
    logits = torch.zeros(mixture.layers if config.per_layer else 1, n, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=config.lr, betas=(0.8, 0.99))
    rng = np.random.default_rng(config.seed)
    order: list[int] = []
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        # Items without replacement, pass after pass.
        while len(order) < config.batch_size:
            order += rng.permutation(len(validation.samples)).tolist()
        batch, order = order[: config.batch_size], order[config.batch_size :]
        if step < len(done):
            logits.grad = torch.tensor(done[step]["gradient"])
            optimizer.step()
            continue
        optimizer.zero_grad()
        weights = logits.softmax(-1)
        mixture.set(weights if config.per_layer else weights[0])
        loss = validation.batch_loss([validation.samples[i] for i in batch])
        loss.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None  # noqa: S101 - backward has just made it
        shares = weights.detach().mean(0).tolist()
        spent = record(
            {
                "step": step + 1,
                "loss": loss.item(),
                "weights": dict(zip(mixture.names, shares, strict=True)),
                "gradient": logits.grad.tolist(),
            }
        )
        optimizer.step()
        if spent:
            break
    return logits.detach().softmax(-1)
