"""A line of a comparison, and how one is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from earec_core.metrics.statistics import Z, holm, paired

Part = Literal["manifest", "vectors", "texts", "recommendations"]


@dataclass(frozen=True)
class Row:
    """Something that two models have, or share.

    Attributes:
        part: of the comparison.
        what: was measured, or an entry of the manifests.
        n: over how many items or users; None for an entry.
        a, b: each model's: a mean, or an entry as text; None for an overlap.
        difference: b less a, the mean over the same items or users; None where it is none.
        overlap: of lists of ten, the part that is in both; None for what is no overlap.
        chance: the overlap of lists drawn at random.
        low, high: the 95% interval of the difference or the overlap.
        p: of a two-sided paired test of the difference, corrected by Holm for those of the part.
    """

    part: Part
    what: str
    n: int | None = None
    a: float | str | None = None
    b: float | str | None = None
    difference: float | None = None
    overlap: float | None = None
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def contrast(part: Part, what: str, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Row:
    """Means of a and b over the same things, and the paired difference; its p not yet corrected."""
    test = paired(b, a)
    less, reach = test["difference"], Z * test["se"]
    return Row(
        part,
        what,
        len(a),
        float(a.mean()),
        float(b.mean()),
        difference=less,
        low=less - reach,
        high=less + reach,
        p=test["p"],
    )


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows of a part, the p's of its differences corrected by Holm."""
    ps = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p=next(ps)) for row in rows]


def overlap(
    part: Part, what: str, a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"], chance: float
) -> Row:
    """How much of each list of a is in that of b, on average.

    Args:
        a, b: rows of items, each once in a list.
    """
    shared = (a[:, :, None] == b[:, None, :]).any(2).mean(1)
    found = paired(shared, np.zeros(len(shared)))
    mean, reach = found["difference"], Z * found["se"]
    low, high = max(0.0, mean - reach), min(1.0, mean + reach)
    return Row(part, what, len(a), overlap=mean, chance=chance, low=low, high=high)
