"""What a composition did: its report, and the norms, cosines and errors in it, from the factors alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from earec_core.compose.dense import Dense
from earec_core.compose.factors import Factors, Part, distance, product_norm
from earec_core.compose.methods import delta
from earec_core.llm.tensors import Array, Dtype


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One composed module.

    Attributes:
        name: the module's name in the base model.
        rank: its rank in the composite.
        norm: ||dW||_F of the exact sum.
        relative_error: ||composed - exact||_F / ||exact||_F.
        truncation_error: the same against the method's own result in place of the exact sum: what its storage
            as factors of this rank and type costs.
    """

    name: str
    rank: int
    norm: float
    relative_error: float
    truncation_error: float


@dataclass(frozen=True, slots=True)
class ComposeReport:
    """What a composition did; figures are None, and mappings of them empty, where nothing was measured.

    Attributes:
        method: the method's name.
        options: the options that the method takes, as used.
        weights: the weights used (after `normalize`), by adapter; those at 0 took no part.
        layer_weights: the weights used in those layers that have their own.
        rank: the composite's `r`, the largest of its modules'.
        dtype: how its factors are stored.
        bytes: size of the composite's two files.
        path: the directory written.
        relative_error: ||composed - exact||_F / ||exact||_F over all modules together, truncation and
            rounding to a half-precision `dtype` included; 0 means exact to float32 rounding.
        truncation_error: the same against the method's own result; differs where the method is not exact.
        norm: ||dW||_F of the exact sum over all modules.
        composed_norm: ||dW||_F of the composite as it is stored.
        norms: ||dW_i||_F of each adapter that took part, its scale included, its weight not.
        cosines: cosine between two adapters' dW over all modules, by "first,second"; 0 where one is zero.
        modules: every module, in alphabetical order.
    """

    method: str
    options: Mapping[str, float]
    weights: Mapping[str, float]
    layer_weights: Mapping[int, Mapping[str, float]]
    rank: int
    dtype: Dtype
    bytes: int
    path: str
    relative_error: float | None = None
    truncation_error: float | None = None
    norm: float | None = None
    composed_norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)
    modules: tuple[ModuleReport, ...] = ()

    def summary(self) -> dict[str, Any]:
        """All but modules and path, in JSON's types; an infinite error (the exact sum is 0) becomes None."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("modules", "path")}
        plain["layer_weights"] = {str(layer): weights for layer, weights in self.layer_weights.items()}
        return {key: None if value == math.inf else value for key, value in plain.items()}


class Measure:
    """Sums over the modules of one composition.

    Args:
        names: the adapters that take part.
        exact: whether the method's result is the exact sum.
    """

    def __init__(self, names: Sequence[str], exact: bool) -> None:
        self._names, self._exact = names, exact
        self._modules: list[ModuleReport] = []
        self._inner = np.zeros((len(names), len(names)))  # <dW_i, dW_j>
        self._squares = np.zeros(5)  # of `add`'s five norms

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
        stored_a = gram_a if np.array_equal(stored.a, stacked) else gram(stored.a)
        if isinstance(result, Factors):
            # Rounding is orthogonal to what the SVD dropped, to first order.
            truncation = math.hypot(dropped, _rounding(composed, stored, stored_a))
        else:
            truncation = float(np.linalg.norm(result - stored.b.astype(np.float64) @ stored.a))
        taking = [part for part in parts if part.weight != 0.0]
        if self._exact or [part.weight for part in taking] == [1.0]:
            error, size = truncation, norm
        else:
            error = distance(delta(taking), stored)
            size = product_norm(result) if isinstance(result, Factors) else float(np.linalg.norm(result))
        kept = abs(stored.scale) * _norm(stored_a, stored.b) if truncation else size
        self._squares += np.square([norm, size, kept, error, truncation])
        errors = _ratio(error, norm), _ratio(truncation, size)
        self._modules.append(ModuleReport(module, len(stored.a), norm, *errors))

    def _add_norms(self, parts: Sequence[Part], gram_a: Float64[np.ndarray, "r r"]) -> float:
        """Add this module to the adapters' inner products; returns ||dW||_F of its exact sum.

        <dW_i, dW_j> = s_i s_j tr(A_j A_i^T B_i^T B_j): blocks of the elementwise product of both Gram matrices.
        """
        products = gram_a * gram(np.concatenate([part.b for part in parts], axis=1).T)
        starts = np.cumsum([0, *(len(part.a) for part in parts[:-1])])
        blocks = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        scales = np.array([part.scale for part in parts])
        inner = blocks * np.outer(scales, scales)
        places = [self._names.index(part.adapter) for part in parts]
        self._inner[np.ix_(places, places)] += inner
        weights = np.array([part.weight for part in parts])
        return math.sqrt(max(0.0, float(weights @ inner @ weights)))

    def figures(self) -> dict[str, Any]:
        """What `ComposeReport` takes of them."""
        norm, size, kept, error, truncation = np.sqrt(self._squares).tolist()
        norms = np.sqrt(np.diag(self._inner).clip(0.0)).tolist()
        cosines = {
            f"{first},{second}": float(self._inner[j, i] / (norms[j] * norms[i] or 1.0))
            for i, second in enumerate(self._names)
            for j, first in enumerate(self._names[:i])
        }
        return {
            "relative_error": _ratio(error, norm),
            "truncation_error": _ratio(truncation, size),
            "norm": norm,
            "composed_norm": kept,
            "norms": dict(zip(self._names, norms, strict=True)),
            "cosines": cosines,
            "modules": tuple(self._modules),
        }


def gram(rows: Float32[Array, "r d"]) -> Float64[np.ndarray, "r r"]:
    """Inner products of all rows, summed in single precision: numpy calls BLAS's syrk for X @ X.T."""
    return (rows @ rows.T).astype(np.float64)


def _norm(gram_a: Float64[np.ndarray, "r r"], b: Float32[Array, "d_out r"]) -> float:
    """||B A||_F."""
    return math.sqrt(max(0.0, float(np.sum(gram_a * gram(b.T)))))


def _rounding(composed: Factors, stored: Factors, gram_a: Float64[np.ndarray, "r r"]) -> float:
    """||dW as stored - dW as composed||_F, free of cancellation: dB A' + B dA; `gram_a` is of the stored A."""
    d_a, d_b = stored.a - composed.a, stored.b - composed.b
    if d_a.any():
        a, b = np.concatenate([stored.a, d_a]), np.concatenate([d_b, composed.b], axis=1)
        return abs(stored.scale) * _norm(gram(a), b)
    return abs(stored.scale) * _norm(gram_a, d_b) if d_b.any() else 0.0


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else (math.inf if error else 0.0)
