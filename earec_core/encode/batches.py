"""Prompts to vectors, in batches of similar length."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float

from earec_core.aligned.model import AlignedModel
from earec_core.aligned.readouts import get_readout
from earec_core.config import EncodeConfig
from earec_core.errors import EarecError
from earec_core.llm.backbone import Spliced
from earec_core.llm.lanes import lanes, side_by_side
from earec_core.llm.prompts import Prompt
from earec_core.types import Show

_POSITIONS = 1024
"""Of a batch that runs beside others, at least: products of fewer rows are slower for each."""


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

    Batches hold prompts of similar length; a vector depends on the batch it was computed in by floating-point
    rounding only.

    Raises:
        EarecError: a vector is not finite; its item is named.
    """
    chunks = list(batched([model.prompts.length(prompt) for prompt in prompts], positions_of(model, config)))
    yield from read_batches(model, prompts, chunks, config)


def positions_of(model: AlignedModel, config: EncodeConfig) -> int:
    """Positions of one batch: of `batch_tokens` its share, where several are read side by side."""
    return config.batch_tokens // _lanes(model, config)


def _lanes(model: AlignedModel, config: EncodeConfig) -> int:
    return lanes(model.backbone, config.batch_tokens, least=_POSITIONS)


def read_batches(
    model: AlignedModel, prompts: Sequence[Prompt], chunks: Sequence[list[int]], config: EncodeConfig
) -> Generator[tuple[list[int], Float[np.ndarray, "b d"]], None, None]:
    """Vectors of prompts, in the batches given by their places; see `prompt_vectors`."""
    readout, places = get_readout(config.readout), iter(chunks)

    @torch.inference_mode()
    def spliced(chunk: Sequence[int]) -> Spliced:
        return model.splice([prompts[i] for i in chunk])

    @torch.inference_mode()
    def read(batch: Spliced) -> Float[np.ndarray, "b d"]:
        vectors: np.ndarray = readout.read(model.states(batch, layer=config.layer)).cpu().numpy()
        return vectors

    for vectors in side_by_side(read, map(spliced, chunks), _lanes(model, config)):
        chunk = next(places)
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            item = model.prompts.items[prompts[chunk[int(finite.argmin())]].item]
            raise EarecError(
                f"The vector of item {item.id!r} holds NaN or infinity.",
                "Check the weights of the backbone and of the model's adapter and projectors; with float16, use "
                "--set backbone.dtype=float32.",
            )
        yield chunk, vectors


def batched(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Places of prompts that are run together, of similar length, the longest first in every batch.

    Args:
        positions: of a batch at most, padding included, but one prompt's.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    done = 0
    while done < len(order):
        # The first prompt's length is the whole batch's.
        size = max(1, positions // max(1, lengths[order[done]]))
        yield order[done : done + size]
        done += size
