"""Lambda by descent: quasi-Newton steps on the simplex, with gradients through the un-merged adapters.

Every value and gradient is that of all validation items, so nothing is noise, and a few of them suffice: a parabola
is fitted to all gradients so far, and its lowest point on the simplex comes next. (Quasi-Newton with several
secants: Schnabel 1983, Quasi-Newton methods using multiple secant equations.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "l n"]


@dataclass(frozen=True)
class Descent:
    """How lambda is learned.

    Attributes:
        steps: gradients; one evaluation without follows.
        per_layer: a weighting for every layer of the LLM.
    """

    steps: int = 4
    per_layer: bool = False


class QuasiNewton:
    """Asks for points and is told their value and gradient.

    Attributes:
        x: the next point, [layers or 1, adapters]; every row lies on the simplex. The first has equal weights.
    """

    first_step = 0.4
    """How far the first step wants to go, in each row; only its direction is known then."""
    least_bend = 0.05
    """Of the typical curvature; where the loss seems flat or concave, this much is assumed."""

    def __init__(self, layers: int, adapters: int) -> None:
        self.x: Rows = np.full((layers, adapters), 1 / adapters)
        self._told: list[tuple[float, Rows, Rows]] = []
        self._typical = 0.0

    def tell(self, value: float, gradient: Rows) -> None:
        """Value and gradient at `x`; moves `x` to the model's lowest point."""
        # What moves a row off the simplex is no business of the model's.
        gradient = gradient - gradient.mean(axis=1, keepdims=True)
        self._told.append((value, self.x, gradient))
        best, *others = sorted(self._told, key=lambda one: one[0])
        steps = [(x - best[1]).ravel() for _, x, _ in others]
        changes = [(g - best[2]).ravel() for _, _, g in others]
        pairs = [(s, y) for s, y in zip(steps, changes, strict=True) if np.linalg.norm(s) > 1e-8]
        if not self._typical:
            self._typical = float(np.linalg.norm(gradient)) / (self.first_step * len(self.x) ** 0.5)
        elif len(self._told) == 2 and pairs:
            (step, change), *_ = pairs
            self._typical = max(float(step @ change / (step @ step)), 0.1 * self._typical)
        bends, directions = np.linalg.eigh(fit_curvature(pairs, self._typical, self.x.size))
        bends = np.maximum(bends, max(self.least_bend * self._typical, 1e-12))
        self.x = lowest(best[2], (directions * bends) @ directions.T, best[1])


def fit_curvature(
    pairs: Sequence[tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]], typical: float, m: int
) -> Float[np.ndarray, "m m"]:
    """The symmetric B for which B s is nearest to y over all pairs, each divided by |s|, in least squares.

    Where no step has been, B is `typical` times the identity: a ridge of 1/400 pulls there.

    Args:
        pairs: steps s and the changes y of the gradient along them.
    """
    ridge = 0.0025
    s = np.array([step / np.linalg.norm(step) for step, _ in pairs]).reshape(-1, m).T
    y = np.array([change / np.linalg.norm(step) for step, change in pairs]).reshape(-1, m).T
    # The normal equations are B P + P B = R, diagonal in the eigenvectors of P.
    values, vectors = np.linalg.eigh(s @ s.T + ridge * np.eye(m))
    right = vectors.T @ (y @ s.T + s @ y.T + 2 * ridge * typical * np.eye(m)) @ vectors
    found: Float[np.ndarray, "m m"] = vectors @ (right / (values[:, None] + values)) @ vectors.T
    return found


def lowest(gradient: Rows, curvature: Float[np.ndarray, "m m"], x: Rows) -> Rows:
    """Where on the simplex, row by row, g (y - x) + (y - x) B (y - x) / 2 is lowest.

    By projected gradient, accelerated (FISTA, Beck & Teboulle 2009).

    Args:
        gradient, x: [l, n].
        curvature: B, positive definite, m = l n.
    """
    slope = float(np.linalg.eigvalsh(curvature)[-1])
    found, ahead, t = x, x, 1.0
    for _ in range(1000):
        downhill = gradient + (curvature @ (ahead - x).ravel()).reshape(x.shape)
        new = project(ahead - downhill / slope)
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        ahead = new + (before - 1) / t * (new - found)
        if np.abs(new - found).max() < 1e-10:
            return new
        found = new
    return found


def project(x: Rows) -> Rows:
    """The nearest point of the simplex, row by row (Duchi et al. 2008, Efficient projections onto the l1-ball)."""
    falling = -np.sort(-x, axis=1)
    over = np.cumsum(falling, axis=1) - 1
    count = (falling - over / np.arange(1, x.shape[1] + 1) > 0).sum(axis=1)
    level = over[np.arange(len(x)), count - 1] / count
    found: Rows = np.maximum(x - level[:, None], 0)
    return found
