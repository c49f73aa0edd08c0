"""A surrogate of the loss on the simplex of weights, fitted to values and gradients through un-merged adapters.

Every value and gradient is that of all validation items, so nothing is noise, and a few of them suffice: a Gaussian
process that has the values and gradients so far is a model of the loss, and its lowest point on the simplex comes
next. (Kriging with derivatives: Morris, Mitchell & Ylvisaker 1993, Bayesian design and analysis of computer
experiments.)

Symbols: l layers with weights of their own, n adapters, p points so far, m = l (n - 1) dimensions of the simplex.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "l n"]


class Surrogate:
    """Asks for points and is told their value and gradient.

    Attributes:
        x: the next point, [layers or 1, adapters]; every row lies on the simplex. The first has equal weights.
    """

    lengths = 0.4 * 2 ** (np.arange(8) / 2)
    """Over what distance in a row the loss changes, 0.4 to 4.5: the likeliest is taken, while there is one point
    alone the shortest, so that the first step is at most so long."""

    def __init__(self, layers: int, adapters: int) -> None:
        self.x: Rows = np.full((layers, adapters), 1 / adapters)
        # An orthonormal basis of what leaves a row's sum as it is.
        self._basis = np.linalg.qr(np.eye(adapters) - 1 / adapters)[0][:, : adapters - 1]
        self._evaluations: list[tuple[float, Rows, Rows]] = []

    def tell(self, value: float, gradient: Rows) -> None:
        """Value and gradient at `x`; moves `x` to the surrogate's lowest point."""
        self._evaluations.append((value, self.x, gradient))
        values, weightings, gradients = zip(*self._evaluations, strict=True)
        points = np.array([self._flat(weighting) for weighting in weightings])
        slopes = np.array([self._flat(gradient) for gradient in gradients])
        lengths = self.lengths[: 1 if len(values) == 1 else None] * len(self.x) ** 0.5
        processes = [Process(points, np.array(values), slopes, length) for length in lengths]
        self._process = max(processes, key=lambda process: process.likelihood)
        self.x = self._lowest(weightings[int(np.argmin(values))])

    def _flat(self, rows: Rows) -> Float[np.ndarray, " m"]:
        flat: np.ndarray = (rows @ self._basis).ravel()
        return flat

    def _at(self, x: Rows) -> tuple[float, Rows]:
        value, slope = self._process.mean(self._flat(x))
        return value, slope.reshape(len(x), -1) @ self._basis.T

    def _lowest(self, x: Rows) -> Rows:
        """The surrogate's lowest point near one, by projected gradient with Armijo's rule."""
        value, slope = self._at(x)
        step = 1.0
        for _ in range(500):
            new = project(x - step * slope)
            moved = float(np.abs(new - x).max())
            if moved < 1e-9:
                break
            ahead, next_slope = self._at(new)
            if ahead <= value - 1e-4 * float(np.sum(slope * (x - new))):
                x, value, slope, step = new, ahead, next_slope, 2 * step
            else:
                step /= 2
        return x


class Process:
    """A Gaussian process given values and gradients: squared-exponential covariance, unknown mean and scale.

    Attributes:
        likelihood: log-likelihood of what was given, mean and scale at their best.

    Args:
        points: [p, m].
        values: at the points.
        slopes: gradients there, [p, m].
        length: of the covariance.
    """

    def __init__(
        self,
        points: Float[np.ndarray, "p m"],
        values: Float[np.ndarray, " p"],
        slopes: Float[np.ndarray, "p m"],
        length: float,
    ) -> None:
        self._points, self._length = points, length
        given = np.concatenate([values, slopes.T.ravel()])
        constant = np.concatenate([np.ones(len(values)), np.zeros(slopes.size)])
        joint = covariance(points, points, length)
        # So much of the variance is noise: points may lie close to each other.
        lower = np.linalg.cholesky(joint + 1e-9 * np.diag(np.diag(joint)))
        white, unit = np.linalg.solve(lower, np.stack([given, constant], axis=1)).T
        self._mean = float(unit @ white / (unit @ unit))
        white = white - self._mean * unit
        self._weights = np.linalg.solve(lower.T, white)
        scale = max(float(white @ white) / len(white), 1e-300)
        self.likelihood = -len(white) / 2 * np.log(scale) - float(np.log(np.diag(lower)).sum())

    def mean(self, x: Float[np.ndarray, " m"]) -> tuple[float, Float[np.ndarray, " m"]]:
        """Expected value and gradient at a point."""
        value, *slope = covariance(x[None], self._points, self._length) @ self._weights
        return self._mean + float(value), np.array(slope)


def covariance(
    x: Float[np.ndarray, "p m"], y: Float[np.ndarray, "q m"], length: float
) -> Float[np.ndarray, "p+p*m q+q*m"]:
    """Of values and gradients at x with those at y, for k(x, y) = exp(-|x - y|^2 / (2 length^2)).

    Values come first, then the gradients, one dimension after the other.
    """
    (p, m), q = x.shape, len(y)
    apart = (x[:, None] - y[None]) / length**2
    k = np.exp(-np.square(x[:, None] - y[None]).sum(axis=-1) / (2 * length**2))
    bend = np.eye(m) / length**2 - apart[..., :, None] * apart[..., None, :]
    blocks = np.empty((1 + m, p, 1 + m, q))
    blocks[0, :, 0] = k
    blocks[0, :, 1:] = np.moveaxis(apart * k[..., None], 2, 1)
    blocks[1:, :, 0] = np.moveaxis(-apart * k[..., None], 2, 0)
    blocks[1:, :, 1:] = np.transpose(bend * k[..., None, None], (2, 0, 3, 1))
    return blocks.reshape((1 + m) * p, (1 + m) * q)


def project(x: Rows) -> Rows:
    """The nearest point of the simplex, row by row (Duchi et al. 2008, Efficient projections onto the l1-ball)."""
    falling = -np.sort(-x, axis=1)
    over = np.cumsum(falling, axis=1) - 1
    count = (falling - over / np.arange(1, x.shape[1] + 1) > 0).sum(axis=1)
    level = over[np.arange(len(x)), count - 1] / count
    projected: Rows = np.maximum(x - level[:, None], 0)
    return projected
