"""What can be said of the difference of two rows, and how large an adapter is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from earec_core.compose import Factors, LoraAdapter
from earec_core.compose.factors import inner, product_norm

Z = 1.959964
"""Two-sided 5% of the normal distribution."""


def difference(a: Float[np.ndarray, " users"], b: Float[np.ndarray, " users"]) -> dict[str, float]:
    """Mean of a - b over users, its standard error, and the p of a two-sided z-test (paired)."""
    each = a - b
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0
    z = float(each.mean()) / error if error else 0.0
    return {"difference": float(each.mean()), "se": error, "p": math.erfc(abs(z) / math.sqrt(2))}


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p's that keep the chance of any false finding among all of them."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def resolution(rate: float, users: int) -> dict[str, float]:
    """Standard error of a hit rate over users, and the smallest difference of two such rates that shows.

    The difference is that of two independent rates at the two-sided 5% level.
    """
    error = math.sqrt(rate * (1 - rate) / users)
    return {"rate": rate, "se": error, "smallest": Z * math.sqrt(2) * error}


def products(adapters: Mapping[str, LoraAdapter]) -> Float[np.ndarray, "m m"]:
    """<dW_i, dW_j> of each two adapters over all modules, in the mapping's order."""
    opened = list(adapters.values())
    found = np.zeros((len(opened), len(opened)))
    for module in sorted({module for adapter in opened for module in adapter.modules}):
        factors = {i: Factors(*a.factors(module)) for i, a in enumerate(opened) if module in a.shapes}
        for i, left in factors.items():
            for j, right in factors.items():
                found[i, j] += inner(left, right)
    return found


def exact_norm(found: Float[np.ndarray, "m m"], weights: Sequence[float]) -> float:
    """||sum_i lambda_i dW_i||_F from the adapters' inner products."""
    lambdas = np.asarray(weights)
    return math.sqrt(max(0.0, float(lambdas @ found @ lambdas)))


def stored_norm(folder: Path) -> float:
    """||dW||_F of a stored adapter over all its modules."""
    adapter = LoraAdapter.open(folder)
    return math.hypot(*(product_norm(Factors(*adapter.factors(module))) for module in adapter.modules))
