"""The surrogate and its lowest point against brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from earec_core.search.surrogate import Process, Surrogate, covariance, project


def simplex(steps: int) -> np.ndarray:
    """Every point of three weights on a grid."""
    counts = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return np.array(counts) / steps


def test_the_nearest_point_of_the_simplex() -> None:
    points = simplex(200)
    for x in np.random.default_rng(0).normal(size=(20, 3)):
        found = project(x[None])[0]
        assert found.sum() == pytest.approx(1)
        assert found.min() >= 0
        nearest = np.linalg.norm(points - x, axis=1).min()
        assert np.linalg.norm(found - x) <= nearest + 1e-12
    rows = np.random.default_rng(1).normal(size=(5, 4))
    np.testing.assert_allclose(project(rows), np.concatenate([project(row[None]) for row in rows]))


@pytest.mark.parametrize("length", [0.4, 1.7])
def test_covariances_of_gradients_are_the_derivatives_of_covariances(length: float) -> None:
    rng, h = np.random.default_rng(0), 1e-4
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(4, 3))

    def k(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(x[:, None] - y[None]).sum(-1) / (2 * length**2))

    found = covariance(x, y, length).reshape(4, 2, 4, 4)
    np.testing.assert_allclose(found[0, :, 0], k(x, y))
    for i, e in enumerate(h * np.eye(3), start=1):
        np.testing.assert_allclose(found[i, :, 0], (k(x + e, y) - k(x - e, y)) / (2 * h), atol=1e-6)
        np.testing.assert_allclose(found[0, :, i], (k(x, y + e) - k(x, y - e)) / (2 * h), atol=1e-6)
        for j, f in enumerate(h * np.eye(3), start=1):
            both = k(x + e, y + f) - k(x - e, y + f) - k(x + e, y - f) + k(x - e, y - f)
            np.testing.assert_allclose(found[i, :, j], both / (4 * h * h), atol=1e-4)


def test_the_surrogate_has_the_values_and_gradients_it_was_given() -> None:
    rng = np.random.default_rng(0)
    points, values, slopes = rng.normal(size=(5, 2)), rng.normal(size=5), rng.normal(size=(5, 2))
    process = Process(points, values, slopes, 0.8)
    for point, value, slope in zip(points, values, slopes, strict=True):
        found, its_slope = process.mean(point)
        assert found == pytest.approx(value, abs=1e-5)
        np.testing.assert_allclose(its_slope, slope, atol=1e-5)
    far, flat = process.mean(np.array([50.0, 50.0]))
    assert min(values) < far < max(values)
    np.testing.assert_allclose(flat, 0, atol=1e-9)


def test_the_likelihood_is_the_normal_distributions_at_its_best_mean_and_scale() -> None:
    rng, means = np.random.default_rng(0), np.linspace(-20, 20, 4001)
    points = rng.normal(size=(4, 2))
    values, slopes = np.sin(points).sum(axis=1), np.cos(points)
    given = np.concatenate([values, slopes.T.ravel()])
    found = {}
    for length in (0.5, 0.9, 1.3):
        joint = covariance(points, points, length) + 1e-9 * np.eye(12) / np.repeat([1, length**2], [4, 8])
        apart = given[:, None] - np.repeat([1.0, 0.0], [4, 8])[:, None] * means
        squares = np.einsum("in,ij,jn->n", apart, np.linalg.inv(joint), apart)
        scales = np.geomspace(squares.min() / 100, squares.min(), 2000)
        density = -squares.min() / scales - 12 * np.log(scales) - np.linalg.slogdet(joint)[1]
        found[length] = density.max() / 2
    own = {length: Process(points, values, slopes, length).likelihood for length in found}
    for length in (0.9, 1.3):
        assert own[length] - own[0.5] == pytest.approx(found[length] - found[0.5], abs=0.01)


Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]


def bent_parabola(rng: np.random.Generator, bend: float) -> Loss:
    """Its lowest point lies inside the simplex or beyond a side; `bend` is the size of cubic terms."""
    root = rng.normal(size=(3, 3))
    curvature = 0.2 * root @ root.T + np.diag(rng.uniform(0.1, 0.8, 3))
    centre, cubic = 1.3 * rng.dirichlet(np.ones(3)) - 0.1, bend * rng.normal(size=3)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        d = x - centre
        return float(d @ curvature @ d / 2 + cubic @ d**3), curvature @ d + 3 * cubic * d**2

    return loss


def cross_entropy(rng: np.random.Generator, size: float) -> Loss:
    """Of 40 labels from logits that are linear in the weights, as an LLM's loss in its adapters' nearly is."""
    logits = rng.normal(size=(40, 3, 6)) * size
    scores = np.einsum("abk,b->ak", logits, rng.dirichlet(np.ones(3)))
    labels = (scores + rng.normal(size=scores.shape)).argmax(axis=1)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = np.exp(np.einsum("abk,b->ak", logits, x))
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(p[np.arange(40), labels]).mean()
        p[np.arange(40), labels] -= 1
        return float(value), np.einsum("abk,ak->b", logits, p) / 40

    return loss


@pytest.mark.parametrize(
    ("kind", "size"),
    [(bent_parabola, 0.0), (bent_parabola, 0.15), (cross_entropy, 3.0), (cross_entropy, 6.0)],
)
def test_four_gradients_find_what_the_grid_of_66_finds(
    kind: Callable[[np.random.Generator, float], Loss], size: float
) -> None:
    rng, grid, better = np.random.default_rng(0), simplex(10), 0
    for _ in range(50):
        loss = kind(rng, size)
        surrogate, values = Surrogate(1, 3), []
        for _ in range(4):
            value, gradient = loss(surrogate.x[0])
            values.append(value)
            surrogate.tell(value, gradient[None])
        values.append(loss(surrogate.x[0])[0])
        better += min(values) <= min(loss(point)[0] for point in grid) + 1e-9
    assert better >= 49


def test_every_row_has_weights_of_its_own() -> None:
    wanted = np.array([[0.2, 0.8], [0.9, 0.1], [1.0, 0.0]])
    surrogate = Surrogate(3, 2)
    for _ in range(8):
        surrogate.tell(float(np.square(surrogate.x - wanted).sum()), 2 * (surrogate.x - wanted))
        np.testing.assert_allclose(surrogate.x.sum(axis=1), 1)
    np.testing.assert_allclose(surrogate.x, wanted, atol=1e-5)


def test_a_flat_loss_stays_where_it_is() -> None:
    surrogate = Surrogate(1, 3)
    for _ in range(3):
        surrogate.tell(1.0, np.zeros((1, 3)))
    np.testing.assert_allclose(surrogate.x, 1 / 3)
