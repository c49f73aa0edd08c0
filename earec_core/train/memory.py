"""What a training holds in memory, worked out from a few sizes for an engine and a number of processes.

W bytes of frozen weights, P trained parameters in float32, N processes; AdamW keeps two numbers a parameter:

| | weights | trained parameters, their gradients, AdamW | exchange |
|---|---|---|---|
| torch | W | 4 P + 4 P + 8 P | copies of the gradients, 4 P, if N > 1 |
| ZeRO 1 | W | 4 P + 4 P + (4 + 4 + 8) P / N | one or two buckets |
| ZeRO 2 | W | 4 P + (8 + 4 + 8) P / N | one or two buckets |
| ZeRO 3 | W / N, tables W_t whole | (4 + 8 + 4 + 8) P / N | buckets, and weights gathered for use |

ZeRO has a copy of the trained parameters beside AdamW's numbers. At stages 2 and 3 a part's gradients are added to
those of the parts before it: twice 4 P / N. What is offloaded is on the processor's side instead. Fragmentation,
the driver's own memory and what a layer needs while it is computed are left out: leave them some GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from earec_core.config import EngineConfig
from earec_core.train.zero import Zero

_FLOAT32 = 4
_MASTER = 4 + 8
"""Bytes of a trained parameter that ZeRO divides from stage 1 on: its copy, and AdamW's two moments."""
_AHEAD = 50_000_000
_LIVE = 1_000_000_000
"""Weights that ZeRO 3 gathers ahead of their use, and at most at a time: DeepSpeed's defaults."""


@dataclass(frozen=True)
class Sizes:
    """What is to be trained, whatever trains it.

    Attributes:
        frozen: bytes of the weights that are not trained.
        width: bytes of one of them.
        tables: bytes of the embeddings among them.
        trained: parameters that are.
        batch: bytes that the largest part of a batch keeps for the way back.
    """

    frozen: int
    width: int
    tables: int
    trained: int
    batch: int


@dataclass(frozen=True)
class Held:
    """Bytes that one process holds, by what needs them.

    Attributes:
        device: where it computes.
        host: on the processor's side, beside that.
    """

    device: Mapping[str, int]
    host: Mapping[str, int]


def held(sizes: Sizes, config: EngineConfig, processes: int) -> Held:
    """What each process of a training holds.

    Raises:
        UsageError: the engine's settings are not usable.
    """
    p, n = sizes.trained, processes
    host = {"best parameters": _FLOAT32 * p}
    if config.name == "torch":
        device = {
            "weights": sizes.frozen,
            "adapter and optimizer": 4 * _FLOAT32 * p,
            "exchange": _FLOAT32 * p if n > 1 else 0,
            "a batch": sizes.batch,
        }
        return Held(device, host)
    zero = Zero.of(config)
    divided = n if zero.stage == 3 else 1
    frozen, parameters = sizes.frozen // divided, _FLOAT32 * p // divided
    # A table that stays whole is beside its part of it.
    tables = sizes.tables if zero.stage == 3 else 0
    gradients = _FLOAT32 * p * (1 + 1 / n) if zero.stage == 1 else 2 * _FLOAT32 * p / n
    optimizer = int(gradients) + _MASTER * p // n
    exchange = _FLOAT32 * zero.bucket * (2 if zero.overlaps else 1)
    if zero.stage == 3:
        live = int(zero.settings.get("stage3_max_live_parameters", _LIVE))
        ahead = int(zero.settings.get("stage3_prefetch_bucket_size", _AHEAD))
        exchange += min(sizes.width * (live + ahead), sizes.frozen + _FLOAT32 * p)
    if zero.offload != "nothing":
        host["optimizer"], optimizer = optimizer, 0
    if zero.offload == "all":
        host["weights"], frozen, parameters = frozen + parameters, 0, 0
    device = {
        "weights": frozen + tables,
        "adapter and optimizer": parameters + optimizer,
        "exchange": exchange,
        "a batch": sizes.batch,
    }
    return Held(device, host)
