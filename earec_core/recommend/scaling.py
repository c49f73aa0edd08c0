"""Item tables: what a sequence model reads of an item and scores against.

Symbols: n items of the catalog, d the model's width, d_in that of frozen vectors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.config import Scaling


class IdTable(nn.Module):
    """A trained embedding per item id: with it the model is SASRec.

    Args:
        n_items: n.
        dim: d.
    """

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(n_items, dim) * 0.02)

    def forward(self) -> Float[Tensor, "n d"]:
        return self.embedding


class VectorTable(nn.Module):
    """Frozen item vectors through one trained linear map, shared by inputs and candidates.

    Args:
        vectors: (n d_in).
        dim: d.
        scaling: see `scaled`.
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "n d_in"], dim: int, *, scaling: Scaling = "whiten") -> None:
        super().__init__()
        self.register_buffer("vectors", scaled(vectors, scaling), persistent=False)
        self.adaptor = nn.Linear(vectors.shape[1], dim)
        # Items start at the size of trained ids.
        nn.init.normal_(self.adaptor.weight, std=0.02 / vectors.shape[1] ** 0.5)

    def forward(self) -> Float[Tensor, "n d"]:
        mapped: Tensor = self.adaptor(self.vectors)
        return mapped


ItemTable = IdTable | VectorTable
"""A module that gives every item in the model's space (n d): what is read, and what is scored against."""


def scaled(vectors: Float[Tensor, "n d_in"], scaling: Scaling) -> Float[Tensor, "n d_in"]:
    """Item vectors as a linear map can use them: an LLM's hidden states have a few directions that drown the rest.

    `whiten` is ZCA on standardised dimensions, X C^(-1/2): the result is one, whatever basis LAPACK gives. It keeps
    the n / 4 leading directions at most, since with as many as items every item would be equally far from every
    other. (Whitening text vectors for recommendation: Zhang et al., ICDE 2024, arXiv 2402.10602.)

    Args:
        vectors: of the whole catalog.
        scaling: `none`, `standardise` (mean 0 and deviation 1 of each dimension) or `whiten`.
    """
    if scaling == "none":
        return vectors.float()
    x = vectors.double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    if scaling == "whiten":
        variance, directions = torch.linalg.eigh(x.T @ x / len(x))
        kept = max(1, min(x.shape[1], len(x) // 4))
        variance, directions = variance[-kept:], directions[:, -kept:]
        x = x @ (directions / (variance + 1e-6 * variance.max()).sqrt()) @ directions.T
    return x.float()
