"""Factors of one module: an adapter's, a composite's, and what follows of dW from them alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from earec_core.llm.tensors import Array


@dataclass(frozen=True)
class Part:
    """What one adapter brings to one module: weight * scale * B @ A.

    Attributes:
        adapter: the adapter's name.
        module: the module's name.
        weight: lambda, the adapter's weight.
        scale: the factor in front of B @ A.
        a: A, [r, d_in].
        b: B, [d_out, r].
    """

    adapter: str
    module: str
    weight: float
    scale: float
    a: Float32[Array, "r d_in"]
    b: Float32[Array, "d_out r"]


@dataclass(frozen=True)
class Factors:
    """One module's composed change, dW = scale * b @ a; shapes as in `Part`."""

    a: Float32[Array, "r d_in"]
    b: Float32[Array, "d_out r"]
    scale: float = 1.0


def product_norm(factors: Factors) -> float:
    """||dW||_F from the factors alone, in double precision."""
    return abs(factors.scale) * _frobenius(factors.a.astype(np.float64), factors.b.astype(np.float64))


def distance(left: Factors, right: Factors) -> float:
    """||dW1 - dW2||_F from the factors alone; resolves differences down to 1e-8 of the norms."""
    b = [left.b.astype(np.float64) * left.scale, right.b.astype(np.float64) * -right.scale]
    a = np.concatenate([left.a, right.a], axis=0).astype(np.float64)
    return _frobenius(a, np.concatenate(b, axis=1))


def _frobenius(a: Float64[np.ndarray, "r d_in"], b: Float64[np.ndarray, "d_out r"]) -> float:
    """||B A||_F."""
    return float(np.sqrt(max(0.0, np.sum((b.T @ b) * (a @ a.T)))))
