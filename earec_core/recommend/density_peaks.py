"""Clusters around the peaks of a density (DPC-KNN), in memory that grows with the number of points alone.

Rodriguez & Laio (Science 2014) with the density of Du et al. (Knowledge-Based Systems 2016). Symbols: p points of d
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 1 << 24


@torch.no_grad()
def density_peaks(points: Float[Tensor, "p d"], clusters: int, neighbours: int) -> Int[Tensor, " p"]:
    """The cluster of each point, numbered from the clearest peak on.

    With the distance D_ij = |x_i - x_j| / sqrt(d), the density of a point is rho_i = exp(-mean of D_ij^2 over its
    nearest neighbours j), its separation delta_i the distance to the nearest point that is denser (of two equally
    dense, the first counts as denser), for the densest the largest distance to any. The points of largest
    rho_i delta_i are the centres. Every other point belongs to the nearest centre, as in TCFormer (Zeng et al.,
    CVPR 2022), not to the cluster of the nearest denser point.

    Args:
        clusters: how many, one at least; with as many as there are points, each is its own.
        neighbours: of a point, itself left out; one at least.
    """
    if clusters >= len(points):
        return torch.arange(len(points), device=points.device)
    x = points / points.shape[1] ** 0.5
    nearest = min(neighbours, len(x) - 1)
    squares = [
        # One more is taken, the point's own distance, which is 0.
        d.square().topk(nearest + 1, largest=False, sorted=False).values.sum(1) / nearest
        for _, d in _distances(x, x)
    ]
    density = (-torch.cat(squares)).exp()
    order = density.argsort(descending=True, stable=True)
    separation = torch.empty_like(density)
    separation[order] = _separations(x[order])
    centres = (density * separation).argsort(descending=True, stable=True)[:clusters]
    found = torch.cat([d.argmin(1) for _, d in _distances(x, x[centres])])
    found[centres] = torch.arange(clusters, device=x.device)
    return found


def _separations(x: Float[Tensor, "p d"]) -> Float[Tensor, " p"]:
    """Distance of each point to the nearest before it; of the first to the farthest of all."""
    nearest = []
    for start, distances in _distances(x, x):
        distances.masked_fill_(torch.ones_like(distances, dtype=torch.bool).triu(start), torch.inf)
        nearest.append(distances.amin(1))
    separation = torch.cat(nearest)
    separation[0] = torch.cdist(x[:1], x).max()
    return separation


def _distances(
    x: Float[Tensor, "p d"], to: Float[Tensor, "q d"]
) -> Iterator[tuple[int, Float[Tensor, "_ q"]]]:
    """Distances of some points after others, each with the number of the first of them."""
    rows = max(1, _CHUNK // len(to))
    for start in range(0, len(x), rows):
        yield start, torch.cdist(x[start : start + rows], to)
