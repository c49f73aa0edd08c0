"""How an item's vector is read off the LLM's hidden states; another one is added as a row of `READOUTS`.

Symbols: b prompts, s positions behind the prefix that all prompts share, d the width of the LLM. Positions from a
prompt's length on are padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from earec_core.errors import UsageError

Read = Callable[[Float[Tensor, "b s d"], Int[Tensor, " b"]], Float[Tensor, "b d"]]


@dataclass(frozen=True)
class Readout:
    """A way to read a vector off.

    Attributes:
        method: what a manifest calls it.
        read: from hidden states and lengths to vectors.
    """

    method: str
    read: Read


def last(hidden: Float[Tensor, "b s d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """The state at the last position: what the model is about to say (Eq. 5)."""
    return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]


def mean(hidden: Float[Tensor, "b s d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """The mean over the prompt's own positions."""
    own = torch.arange(hidden.shape[1], device=hidden.device)[None] < lengths[:, None]
    return (hidden * own[..., None]).sum(1) / lengths[:, None]


READOUTS: Mapping[str, Readout] = {
    "last": Readout("last-hidden-state", last),
    "mean": Readout("mean-hidden-state", mean),
}
"""By the setting `encode.readout`."""


def get_readout(name: str) -> Readout:
    """The readout of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in READOUTS:
        raise UsageError(f"There is no readout {name!r}.", f"Set encode.readout to {' or '.join(READOUTS)}.")
    return READOUTS[name]
