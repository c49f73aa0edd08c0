"""Prompts to vectors, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.readouts import get_readout
from earec_core.config import EncodeConfig
from earec_core.errors import EarecError
from earec_core.llm.prompts import Prompt
from earec_core.types import Show


def item_vectors(
    model: AlignedModel,
    rows: Sequence[int],
    config: EncodeConfig | None = None,
    *,
    show: Show = lambda *_: None,
) -> Float[np.ndarray, "n d"]:
    """Vectors of the items of `rows`, in that order, all in memory (Eq. 5).

    Raises:
        EarecError: see `prompt_vectors`.
    """
    vectors, done = np.empty((len(rows), 0), dtype=np.float32), 0
    prompts = [model.prompts.prompt(row) for row in rows]
    for chunk, read in prompt_vectors(model, prompts, config or EncodeConfig()):
        if not vectors.shape[1]:
            vectors = np.empty((len(rows), read.shape[1]), dtype=np.float32)
        vectors[chunk] = read
        done += len(chunk)
        show(done, len(rows), "items")
    return vectors


def prompt_vectors(
    model: AlignedModel, prompts: Sequence[Prompt], config: EncodeConfig
) -> Iterator[tuple[list[int], Float[np.ndarray, "b d"]]]:
    """Vectors of prompts, batch by batch: their places among `prompts`, and the vectors.

    Batches hold prompts of similar length and at most `batch_tokens` positions, padding included; a vector depends
    on the batch it was computed in by floating-point rounding only.

    Raises:
        EarecError: a vector is not finite; its item is named.
    """
    readout = get_readout(config.readout)
    for chunk in batched([model.prompts.length(prompt) for prompt in prompts], config):
        with torch.inference_mode():
            states = model.states([prompts[i] for i in chunk], layer=config.layer)
            vectors = readout.read(states).cpu().numpy()
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            item = model.prompts.items[prompts[chunk[int(finite.argmin())]].item]
            raise EarecError(
                f"The vector of item {item.id!r} holds NaN or infinity.",
                "Check the weights of the backbone and of the model's adapter and projectors; with float16, use "
                "--set backbone.dtype=float32.",
            )
        yield chunk, vectors


def batched(lengths: Sequence[int], config: EncodeConfig) -> Iterator[list[int]]:
    """Places of prompts that are run together, of similar length, the longest first in every batch."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    done = 0
    while done < len(order):
        # The first prompt's length is the whole batch's.
        size = max(1, config.batch_tokens // max(1, lengths[order[done]]))
        yield order[done : done + size]
        done += size
