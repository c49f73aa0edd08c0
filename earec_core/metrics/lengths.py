"""How long prompts and samples are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """Of some prompts or samples, in positions."""

    least: int
    median: int
    most_of_them: int
    most: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Of one length at least; `most_of_them` is what 95% keep within."""
        values = np.array(lengths)
        return cls(
            int(values.min()),
            int(np.median(values)),
            int(np.quantile(values, 0.95, method="higher")),
            int(values.max()),
        )
