"""What a composition did to the weights: norms, cosines and errors, from the factors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64

from earec_core.compose.dense import Dense
from earec_core.compose.factors import Factors, Part, distance, product_norm
from earec_core.compose.methods import delta
from earec_core.compose.report import ModuleReport
from earec_core.llm.tensors import Array


@dataclass
class Measure:
    """Sums over the modules of one composition.

    Attributes:
        names: the adapters that take part.
        exact: whether the method's result is the exact sum.
        inner: <dW_i, dW_j> over the modules so far, in the order of `names`.
        modules: those so far.
    """

    names: Sequence[str]
    exact: bool
    modules: list[ModuleReport] = field(default_factory=list)
    squared_error: float = 0.0
    squared_norm: float = 0.0
    squared_truncation: float = 0.0
    squared_result: float = 0.0

    def __post_init__(self) -> None:
        self.inner = np.zeros((len(self.names), len(self.names)))

    def add(
        self,
        module: str,
        parts: Sequence[Part],
        result: Factors | Dense,
        composed: Factors,
        stored: Factors,
        dropped: float = 0.0,
    ) -> None:
        """One more module.

        Args:
            module: its name.
            parts: what each adapter has there, those of weight 0 included.
            result: the method's.
            composed: the result at the composite's rank.
            stored: the same as it was rounded for the file.
            dropped: norm of what the composite's rank left out of the result, where that is `Factors`.
        """
        stacked = np.concatenate([part.a for part in parts])
        gram_a = gram(stacked)
        norm = self._add_norms(parts, gram_a)
        if isinstance(result, Factors):
            known = gram_a if np.array_equal(composed.a, stacked) else None
            # Rounding is orthogonal to what the SVD dropped, to first order.
            truncation = math.hypot(dropped, _rounding(composed, stored, known))
        else:
            truncation = float(np.linalg.norm(result - stored.b.astype(np.float64) @ stored.a))
        taking = [part for part in parts if part.weight != 0.0]
        if self.exact or [part.weight for part in taking] == [1.0]:
            error, size = truncation, norm
        else:
            error = distance(delta(taking), stored)
            size = product_norm(result) if isinstance(result, Factors) else float(np.linalg.norm(result))
        self.squared_error += error**2
        self.squared_norm += norm**2
        self.squared_truncation += truncation**2
        self.squared_result += size**2
        self.modules.append(
            ModuleReport(module, stored.a.shape[0], norm, _ratio(error, norm), _ratio(truncation, size))
        )

    def _add_norms(self, parts: Sequence[Part], gram_a: Float64[np.ndarray, "r r"]) -> float:
        """Add this module to the adapters' inner products; returns ||dW||_F of its exact sum.

        <dW_i, dW_j> = s_i s_j tr(A_j A_i^T B_i^T B_j): blocks of the elementwise product of both Gram matrices.
        """
        products = gram_a * gram(np.concatenate([part.b for part in parts], axis=1).T)
        starts = np.cumsum([0, *(len(part.a) for part in parts[:-1])])
        blocks = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        scales = np.array([part.scale for part in parts])
        inner = blocks * np.outer(scales, scales)
        places = [self.names.index(part.adapter) for part in parts]
        self.inner[np.ix_(places, places)] += inner
        weights = np.array([part.weight for part in parts])
        return math.sqrt(max(0.0, float(weights @ inner @ weights)))

    @property
    def relative_error(self) -> float:
        """||composed - exact||_F / ||exact||_F."""
        return _ratio(math.sqrt(self.squared_error), self.norm)

    @property
    def truncation_error(self) -> float:
        """The same against the method's own result."""
        return _ratio(math.sqrt(self.squared_truncation), math.sqrt(self.squared_result))

    @property
    def norm(self) -> float:
        """||dW||_F of the exact sum."""
        return math.sqrt(self.squared_norm)

    @property
    def norms(self) -> dict[str, float]:
        """||dW_i||_F of each adapter."""
        return {name: math.sqrt(max(0.0, self.inner[i, i])) for i, name in enumerate(self.names)}

    @property
    def cosines(self) -> dict[str, float]:
        """Of two adapters' dW, by "first,second"."""
        norms = self.norms
        return {
            f"{first},{second}": float(self.inner[j, i] / (norms[first] * norms[second] or 1.0))
            for i, second in enumerate(self.names)
            for j, first in enumerate(self.names[:i])
        }


def gram(rows: Float32[Array, "r d"]) -> Float64[np.ndarray, "r r"]:
    """Inner products of all rows, summed in single precision: numpy calls BLAS's syrk for X @ X.T."""
    return (rows @ rows.T).astype(np.float64)


def _rounding(computed: Factors, stored: Factors, gram_a: Float64[np.ndarray, "r r"] | None) -> float:
    """||dW as stored - dW as computed||_F, free of cancellation: dB A' + B dA.

    Args:
        gram_a: of the computed A, where it is known.
    """
    d_a, d_b = stored.a - computed.a, stored.b - computed.b
    if not d_a.any():
        if not d_b.any():
            return 0.0
        squared = np.sum((gram(stored.a) if gram_a is None else gram_a) * gram(d_b.T))
    else:
        a, b = np.concatenate([stored.a, d_a]), np.concatenate([d_b, computed.b], axis=1)
        squared = np.sum(gram(a) * gram(b.T))
    return abs(stored.scale) * math.sqrt(max(0.0, float(squared)))


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else (math.inf if error else 0.0)
