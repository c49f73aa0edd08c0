"""How an item's vector is read off the LLM's hidden states; another one is added as a row of `READOUTS`.

Symbols: b prompts, d the width of the LLM, m modalities. Positions from a prompt's length on are padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from earec_core.aligned.model import States
from earec_core.artifacts.vectors import SLOTS
from earec_core.errors import UsageError

Read = Callable[[States], Float[Tensor, "b d_out"]]


@dataclass(frozen=True)
class Readout:
    """A way to read a vector off.

    Attributes:
        method: what a manifest calls it.
        read: from the states of a batch of prompts to vectors; a vector depends on its own prompt alone.
    """

    method: str
    read: Read


def last(states: States) -> Float[Tensor, "b d"]:
    """The state at the last position: what the model is about to say (Eq. 5)."""
    rows = torch.arange(len(states.lengths), device=states.hidden.device)
    return states.hidden[rows, states.lengths - 1]


def mean(states: States) -> Float[Tensor, "b d"]:
    """The mean over the positions of the item's own slots; of an item without any, over its whole prompt."""
    own = states.slots >= 0
    whole = torch.arange(own.shape[1], device=own.device)[None] < states.lengths[:, None]
    return _mean(states, torch.where(own.any(1, keepdim=True), own, whole))


def slots(states: States) -> Float[Tensor, "b md"]:
    """The mean over each modality's slot, side by side in slot order; zeros for a modality that an item lacks."""
    return torch.cat([_mean(states, states.slots == k) for k in range(len(states.modalities))], dim=1)


READOUTS: Mapping[str, Readout] = {
    "last": Readout("last-hidden-state", last),
    "mean": Readout("mean-slot-state", mean),
    "slots": Readout(SLOTS, slots),
}
"""By the setting `encode.readout`."""


def get_readout(name: str) -> Readout:
    """The readout of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in READOUTS:
        raise UsageError(f"There is no readout {name!r}.", f"Set encode.readout to {', '.join(READOUTS)}.")
    return READOUTS[name]


def _mean(states: States, taken: Bool[Tensor, "b s"]) -> Float[Tensor, "b d"]:
    """The mean over the positions taken; zeros where none is."""
    hidden = torch.where(taken[..., None], states.hidden, 0.0)
    return hidden.sum(1) / taken.sum(1, keepdim=True).clamp_min(1)
