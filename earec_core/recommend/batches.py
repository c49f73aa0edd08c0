"""Batches of a training: all positions of a sequence at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from earec_core.catalog import Sequences
from earec_core.config import RecommenderConfig


def epoch_batches(
    sequences: Sequences, config: RecommenderConfig, rng: np.random.Generator
) -> Iterator[list[Int[np.ndarray, " _"]]]:
    """Windows of at most max_len + 1 items that cover every transition, about batch_size positions a batch.

    Longer sequences are cut at places drawn anew each epoch; windows of similar length go together.

    Args:
        sequences: of the training part.
        config: `max_len` and `batch_size`.
        rng: of the epoch.
    """
    windows: list[Int[np.ndarray, " _"]] = []
    for user in range(len(sequences)):
        items = sequences.of(user)
        n = len(items)
        start = -int(rng.integers(config.max_len)) if n > config.max_len + 1 else 0
        while start < n - 1:
            window = items[max(start, 0) : start + config.max_len + 1]
            if len(window) > 1:
                windows.append(np.ascontiguousarray(window))
            start += config.max_len
    order = rng.permutation(len(windows))
    lengths = np.array([len(windows[i]) for i in order])
    order = order[np.argsort(lengths, kind="stable")]
    groups: list[list[int]] = []
    positions = config.batch_size
    for i in order:
        if positions >= config.batch_size:
            groups.append([])
            positions = 0
        groups[-1].append(int(i))
        positions += len(windows[i]) - 1
    for g in rng.permutation(len(groups)):
        yield [windows[i] for i in groups[g]]


def transitions(
    windows: Sequence[Int[np.ndarray, " _"]], device: torch.device
) -> tuple[Int[Tensor, "b s"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """The predictions in a batch: the next item at every position of the windows but the last.

    Returns:
        Inputs padded on the right with row 0; the places in the flattened inputs that a prediction follows;
        the item that follows each.
    """
    inputs = nn.utils.rnn.pad_sequence([torch.from_numpy(w[:-1]) for w in windows], batch_first=True)
    inputs = inputs.to(device)
    targets = torch.from_numpy(np.concatenate([w[1:] for w in windows])).to(device)
    lengths = torch.tensor([len(w) - 1 for w in windows], device=device)
    valid = torch.arange(inputs.shape[1], device=device)[None] < lengths[:, None]
    return inputs, valid.flatten().nonzero().squeeze(1), targets
