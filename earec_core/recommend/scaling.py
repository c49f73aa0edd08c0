"""Scalings of frozen item vectors; another one is a function and a row of `SCALINGS`.

An LLM's hidden states have a few directions so large that they drown the rest, and gradient descent hardly finds
these again through a map. Symbols: n items of the catalog, d_in the width of their vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError

Scaled = Callable[[Float[Tensor, "n d_in"], RecommenderConfig], Float[Tensor, "n d"]]


def none(vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Float[Tensor, "n d_in"]:
    """The vectors as they are."""
    return vectors.float()


def standardise(vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Float[Tensor, "n d_in"]:
    """Mean 0 and deviation 1 of each dimension."""
    x = vectors.double()
    return ((x - x.mean(0)) / x.std(0).clamp_min(1e-6)).float()


def whiten(vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Float[Tensor, "n d_in"]:
    """ZCA on standardised dimensions, X C^(-1/2): the result is one, whatever basis LAPACK gives.

    It keeps the n / 4 leading directions at most, since with as many as items every item would be equally far from
    every other. (Whitening text vectors for recommendation: Zhang et al., ICDE 2024, arXiv 2402.10602.)
    """
    return _softened(vectors, 0.0)


def soften(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Float[Tensor, "n d_in"]:
    """As `whiten`, but a direction of variance s^2 keeps the deviation sqrt(s^2 / (s^2 + lambda)).

    Lambda is `soften` times the mean variance of the directions: 0 is `whiten`, and the larger it is, the more the
    leading directions count. Directions of little variance, which are noise for the most part, are not blown up.
    """
    return _softened(vectors, config.soften)


def pca(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Float[Tensor, "n d"]:
    """The 4 x `dim` leading directions of the centred vectors at most, their variances kept in proportion.

    All together have mean variance 1. Of each direction the largest loading is positive.
    """
    x = vectors.double()
    variance, directions = _spectrum(x - x.mean(0), 4 * config.dim)
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return ((x - x.mean(0)) @ (directions * signs) / variance.mean().sqrt().clamp_min(1e-12)).float()


SCALINGS: Mapping[str, Scaled] = {
    "whiten": whiten,
    "soften": soften,
    "pca": pca,
    "standardise": standardise,
    "none": none,
}
"""By the setting `recommender.scaling`."""


def scaled(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Float[Tensor, "n d"]:
    """A catalog's vectors as `recommender.scaling` says.

    Raises:
        UsageError: there is no such scaling.
    """
    if config.scaling not in SCALINGS:
        raise UsageError(
            f"There is no scaling {config.scaling!r}.", f"Set recommender.scaling to {', '.join(SCALINGS)}."
        )
    return SCALINGS[config.scaling](vectors, config)


def _softened(vectors: Float[Tensor, "n d_in"], soften: float) -> Float[Tensor, "n d_in"]:
    x = vectors.double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    variance, directions = _spectrum(x, max(1, min(x.shape[1], len(x) // 4)))
    floor = 1e-6 * variance.max() + soften * variance.mean()
    return (x @ (directions / (variance + floor).sqrt()) @ directions.T).float()


def _spectrum(x: Float[Tensor, "n d_in"], most: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "d_in k"]]:
    """The leading directions of centred vectors, the largest last, and their variances."""
    variance, directions = torch.linalg.eigh(x.T @ x / len(x))
    return variance[-most:], directions[:, -most:]
