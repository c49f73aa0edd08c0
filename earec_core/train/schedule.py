"""How large the learning rate is, as a part of its full size."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "linear"]


def factor(schedule: Schedule, done: float, *, steps: int, warmup: float) -> float:
    """The learning rate's factor in [0, 1]: rising over the warm-up, then as the schedule says.

    Args:
        schedule: `constant`, or falling to 0 as a `cosine` or a line.
        done: how much of the training is over; 1 at its end.
        steps: steps of the whole training; the first of a warm-up has a rate above 0.
        warmup: how much of the training it takes, below 1.
    """
    if done < warmup:
        return (done + 1 / steps) / (warmup + 1 / steps)
    rest = (done - warmup) / (1 - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1)))
    return max(0.0, 1 - rest) if schedule == "linear" else 1.0
