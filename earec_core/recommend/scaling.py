"""Scalings of frozen item vectors; another one is a function that fits it and a row of `SCALINGS`.

An LLM's hidden states have a few directions so large that they drown the rest, and gradient descent hardly finds
these again through a map. Symbols: n items of the catalog, d_in the width of their vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError


@dataclass(frozen=True)
class Scaling:
    """A scaling as it was fitted to a catalog's vectors: x -> (x - mean) / deviation @ directions.

    It scales vectors of another catalog as it does those that it was fitted to. What is None is left out.

    Attributes:
        mean, deviation: of each dimension [d_in], in double precision.
        directions: a matrix [d_in, d], in double precision.
    """

    mean: Float[Tensor, " d_in"] | None = None
    deviation: Float[Tensor, " d_in"] | None = None
    directions: Float[Tensor, "d_in d"] | None = None

    def __call__(self, vectors: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d"]:
        x = vectors.double() if self.to_store() else vectors
        if self.mean is not None:
            x = x - self.mean
        if self.deviation is not None:
            x = x / self.deviation
        return (x if self.directions is None else x @ self.directions).float()

    def to_store(self) -> dict[str, Tensor]:
        """Its tensors by name; none of one that leaves vectors as they are."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


Fit = Callable[[Float[Tensor, "n d_in"], RecommenderConfig], Scaling]


def none(_vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Scaling:
    """The vectors as they are."""
    return Scaling()


def standardise(vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Scaling:
    """Mean 0 and deviation 1 of each dimension."""
    x = vectors.double()
    return Scaling(x.mean(0), x.std(0).clamp_min(1e-6))


def whiten(vectors: Float[Tensor, "n d_in"], _: RecommenderConfig) -> Scaling:
    """ZCA on standardised dimensions, X C^(-1/2): the result is one, whatever basis LAPACK gives.

    It keeps the n / 4 leading directions at most, since with as many as items every item would be equally far from
    every other. (Whitening text vectors for recommendation: Zhang et al., ICDE 2024, arXiv 2402.10602.)
    """
    return _softened(vectors, 0.0)


def soften(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Scaling:
    """As `whiten`, but a direction of variance s^2 keeps the deviation sqrt(s^2 / (s^2 + lambda)).

    Lambda is `soften` times the mean variance of the directions: 0 is `whiten`, and the larger it is, the more the
    leading directions count. Directions of little variance, which are noise for the most part, are not blown up.
    """
    return _softened(vectors, config.soften)


def pca(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Scaling:
    """The 4 x `dim` leading directions of the centred vectors at most, their variances kept in proportion.

    All together have mean variance 1. Of each direction the largest loading is positive.
    """
    x = vectors.double()
    mean = x.mean(0)
    variance, directions = _spectrum(x - mean, 4 * config.dim)
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return Scaling(mean, directions=directions * signs / variance.mean().sqrt().clamp_min(1e-12))


SCALINGS: Mapping[str, Fit] = {
    "whiten": whiten,
    "soften": soften,
    "pca": pca,
    "standardise": standardise,
    "none": none,
}
"""By the setting `recommender.scaling`."""


def fitted(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Scaling:
    """What `recommender.scaling` says, fitted to a catalog's vectors.

    Raises:
        UsageError: there is no such scaling.
    """
    if config.scaling not in SCALINGS:
        raise UsageError(
            f"There is no scaling {config.scaling!r}.", f"Set recommender.scaling to {', '.join(SCALINGS)}."
        )
    return SCALINGS[config.scaling](vectors, config)


def scaled(vectors: Float[Tensor, "n d_in"], config: RecommenderConfig) -> Float[Tensor, "n d"]:
    """A catalog's vectors by the scaling fitted to them.

    Raises:
        UsageError: see `fitted`.
    """
    return fitted(vectors, config)(vectors)


def _softened(vectors: Float[Tensor, "n d_in"], soften: float) -> Scaling:
    x = vectors.double()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / deviation
    variance, directions = _spectrum(x, max(1, min(x.shape[1], len(x) // 4)))
    floor = 1e-6 * variance.max() + soften * variance.mean()
    return Scaling(mean, deviation, directions / (variance + floor).sqrt() @ directions.T)


def _spectrum(x: Float[Tensor, "n d_in"], most: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "d_in k"]]:
    """The leading directions of centred vectors, the largest last, and their variances."""
    variance, directions = torch.linalg.eigh(x.T @ x / len(x))
    return variance[-most:], directions[:, -most:]
