"""Methods that work on the dense dW of one module, and the way back to factors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from earec_core.compose.factors import Part
from earec_core.llm.tensors import Array

Dense = npt.NDArray[np.float64]


def ties(parts: Sequence[Part], density: float) -> Dense:
    """TIES-Merging (Yadav et al. 2023, arXiv 2306.01708), each module for itself, with weights.

    Trim x_i = lambda_i dW_i to its largest magnitudes, elect each entry's sign by the sum, and keep what agrees:
    W sum_agree x_i / sum_agree |lambda_i|, W = sum |lambda_i|. At equal weights 1/n this is the paper's
    disjoint mean; where all agree it is the plain sum.

    Args:
        parts: of one module.
        density: share of each x_i's entries that is kept.

    Returns:
        dW, [d_out, d_in].
    """
    trimmed = [_largest(_change(part) * part.weight, density) for part in parts]
    total: Dense = np.sum(trimmed, axis=0)
    merged, size = np.zeros_like(total), np.zeros_like(total)
    for part, x in zip(parts, trimmed, strict=True):
        agrees = x * total > 0.0
        merged += np.where(agrees, x, 0.0)
        size += np.where(agrees, abs(part.weight), 0.0)
    np.divide(merged, size, out=merged, where=size > 0.0)
    merged *= sum(abs(part.weight) for part in parts)
    return merged


def dare(parts: Sequence[Part], density: float, seed: int) -> Dense:
    """DARE (Yu et al. 2024, arXiv 2311.03099): drop entries of each dW_i at random, rescale, sum by weight.

    Args:
        parts: of one module.
        density: the probability that an entry is kept; what is kept is divided by it.
        seed: of the masks; they follow from it, the adapter's name and the module's, and from nothing else.

    Returns:
        dW, [d_out, d_in].
    """
    merged = np.zeros((parts[0].b.shape[0], parts[0].a.shape[1]))
    for part in parts:
        change = _change(part) * (part.weight / density)
        if density < 1.0:
            change *= _mask(f"{seed}\n{part.adapter}\n{part.module}", merged.shape, density)
        merged += change
    return merged


def low_rank(dense: Dense, rank: int) -> tuple[Array, Array]:
    """The closest matrix of a rank, as factors that share the singular values equally.

    The singular vectors of the shorter side are the eigenvectors of its Gram matrix; projecting `dense` on the
    leading ones gives the other factor, so what the Gram matrix loses (singular values below 1e-8 of the
    largest) costs nothing else.

    Args:
        dense: [d_out, d_in].
        rank: at most min(d_out, d_in).

    Returns:
        A [rank, d_in] and B [d_out, rank], float32, dW = B A.
    """
    wide = dense.shape[0] <= dense.shape[1]
    tall = dense.T if wide else dense
    vectors = np.linalg.eigh(tall.T @ tall)[1][:, ::-1][:, :rank]
    projected = tall @ vectors
    root = np.sqrt(np.linalg.norm(projected, axis=0))
    long = np.divide(projected, root, out=np.zeros_like(projected), where=root > 0.0)
    short = vectors * root
    b, a = (short, long.T) if wide else (long, short.T)
    return np.ascontiguousarray(a, dtype=np.float32), np.ascontiguousarray(b, dtype=np.float32)


def _change(part: Part) -> Dense:
    """dW_i = s B A, [d_out, d_in]."""
    return (part.b.astype(np.float64) * part.scale) @ part.a.astype(np.float64)


def _largest(values: Dense, density: float) -> Dense:
    """`values` with all but the largest magnitudes set to 0; equal ones stay or go together."""
    count = max(1, int(density * values.size))
    size = np.abs(values)
    threshold = np.partition(size, values.size - count, axis=None)[values.size - count]
    values[size < threshold] = 0.0
    return values


def _mask(key: str, shape: tuple[int, int], density: float) -> npt.NDArray[np.bool_]:
    """True with probability `density`; the raw bits of PCG64, which numpy never changes."""
    bits = np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
    count = shape[0] * shape[1]
    raw = bits.random_raw(-(-count // 2)).astype("<u8").view("<u4")[:count]
    kept: npt.NDArray[np.bool_] = raw < np.uint32(min(int(density * 2**32), 2**32 - 1))
    return kept.reshape(shape)
