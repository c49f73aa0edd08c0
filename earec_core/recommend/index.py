"""Nearest items by inner product: an exact FAISS index, whose keys are in the order of the catalog's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.errors import IntegrityError
from earec_core.recommend.models.base import Recommender


@torch.inference_mode()
def build_index(model: Recommender, items: Float[Tensor, "n d"] | None = None) -> Any:
    """A FAISS index of every item's key, kept as float32.

    Args:
        items: default: the model's own.
    """
    import faiss

    keys = plain(model.keys(model.items() if items is None else items))
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    return index


def write_index(index: Any, file: Path) -> None:
    """Write an index, the same bytes for the same keys."""
    import faiss

    faiss.write_index(index, str(file))


def read_index(file: Path) -> Any:
    """Read what `write_index` wrote.

    Raises:
        IntegrityError: it is no index.
    """
    import faiss

    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        raise IntegrityError(
            f"The index {file} cannot be read.", "Train the recommender again: earec recommend train."
        ) from error


def plain(x: Float[Tensor, "_ d"]) -> Float[np.ndarray, "_ d"]:
    """Vectors as FAISS takes them."""
    return np.ascontiguousarray(x.float().cpu().numpy())
