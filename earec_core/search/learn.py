"""Lambda by descent: quasi-Newton steps on the simplex, with gradients through the un-merged adapters.

Every value and gradient is that of all validation items, so nothing is noise, and a few of them suffice: between
them the loss is taken to be a parabola (BFGS, with Powell's damping where it is not convex), whose lowest point on
the simplex comes next. Nocedal & Wright, Numerical Optimization, 2006, sections 6.1 and 18.3.
"""

from __future__ import annotations

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

    def __init__(self, layers: int, adapters: int) -> None:
        self.x: Rows = np.full((layers, adapters), 1 / adapters)
        self._best: tuple[float, Rows, Rows] | None = None
        self._curvature = np.zeros((self.x.size, self.x.size))
        self._told = 0

    def tell(self, value: float, gradient: Rows) -> None:
        """Value and gradient at `x`; moves `x` to the model's lowest point."""
        # What moves a row off the simplex is no business of the model's.
        gradient = gradient - gradient.mean(axis=1, keepdims=True)
        if self._best is None:
            size = float(np.linalg.norm(gradient)) / (self.first_step * len(self.x) ** 0.5)
            self._curvature = np.eye(self.x.size) * max(size, 1e-12)
        else:
            self._update((self.x - self._best[1]).ravel(), (gradient - self._best[2]).ravel())
        if self._best is None or value < self._best[0]:
            self._best = value, self.x, gradient
        self._told += 1
        self.x = lowest(self._best[2], self._curvature, self._best[1])

    def _update(self, step: Float[np.ndarray, " m"], change: Float[np.ndarray, " m"]) -> None:
        """BFGS; the second gradient also gives the curvature its scale."""
        length, along = float(step @ step), float(step @ change)
        if length < 1e-16:
            return
        if self._told == 1:
            self._curvature = np.eye(len(step)) * max(along / length, 0.1 * self._curvature[0, 0])
        pull = self._curvature @ step
        known = float(step @ pull)
        share = 1.0 if along >= 0.2 * known else 0.8 * known / (known - along)
        change = share * change + (1 - share) * pull
        self._curvature += np.outer(change, change) / (step @ change) - np.outer(pull, pull) / known


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
