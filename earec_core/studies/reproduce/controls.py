"""Item vectors without composition, from the vectors of each modality's own adapter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float


def mean(
    vectors: Mapping[str, Float[np.ndarray, "n d"]], present: Mapping[str, Bool[np.ndarray, " n"]]
) -> Float[np.ndarray, "n d"]:
    """Each item's mean over the modalities that it has; over all of them where it has none.

    Args:
        vectors: by modality.
        present: which items have it, by modality.
    """
    has = np.stack([present[m] for m in vectors], axis=1)
    has[~has.any(axis=1)] = True
    summed = sum(has[:, [i]] * vector for i, vector in enumerate(vectors.values()))
    means: np.ndarray = (summed / has.sum(axis=1, keepdims=True)).astype(np.float32)
    return means


def concatenation(
    vectors: Mapping[str, Float[np.ndarray, "n d"]],
    present: Mapping[str, Bool[np.ndarray, " n"]],
    width: int,
) -> Float[np.ndarray, "n width"]:
    """The modalities' vectors side by side, zeros where an item lacks one, reduced by PCA.

    Centred, not scaled. Components are in the order of their variance; a component's sign makes its largest
    loading positive, so that there is one result. With fewer than `width` items there are as many as items.

    Args:
        vectors: by modality.
        present: which items have it, by modality.
        width: components to keep.
    """
    joined = np.concatenate([present[m][:, None] * vectors[m] for m in vectors], axis=1).astype(np.float64)
    u, s, vt = np.linalg.svd(joined - joined.mean(axis=0), full_matrices=False)
    kept = min(width, len(s))
    signs = np.sign(vt[np.arange(kept), np.abs(vt[:kept]).argmax(axis=1)])
    components: np.ndarray = (u[:, :kept] * s[:kept] * signs).astype(np.float32)
    return components
