"""Descent on the simplex against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from earec_core.search.learn import QuasiNewton, fit_curvature, lowest, project


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


def test_the_lowest_point_of_a_parabola() -> None:
    rng, points = np.random.default_rng(0), simplex(200)
    for _ in range(20):
        root, gradient, x = rng.normal(size=(3, 3)), rng.normal(size=3), rng.dirichlet(np.ones(3))
        curvature = root @ root.T + 0.1 * np.eye(3)

        def parabola(
            y: np.ndarray, g: np.ndarray = gradient, b: np.ndarray = curvature, x: np.ndarray = x
        ) -> float:
            return float(g @ (y - x) + (y - x) @ b @ (y - x) / 2)

        found = lowest(gradient[None], curvature, x[None])[0]
        assert parabola(found) <= min(parabola(point) for point in points) + 1e-9


@pytest.mark.parametrize("bend", [0.0, 0.15])
def test_four_gradients_find_what_the_grid_of_66_finds(bend: float) -> None:
    """A parabola, bent by cubic terms, its lowest point inside the simplex or beyond a side."""
    rng, grid, better = np.random.default_rng(0), simplex(10), 0
    for _ in range(100):
        root = rng.normal(size=(3, 3))
        curvature = 0.2 * root @ root.T + np.diag(rng.uniform(0.1, 0.8, 3))
        centre, cubic = 1.3 * rng.dirichlet(np.ones(3)) - 0.1, bend * rng.normal(size=3)

        def loss(
            x: np.ndarray, b: np.ndarray = curvature, c: np.ndarray = centre, k: np.ndarray = cubic
        ) -> tuple[float, np.ndarray]:
            d = x - c
            return float(d @ b @ d / 2 + k @ d**3), b @ d + 3 * k * d**2

        newton, values = QuasiNewton(1, 3), []
        for _ in range(4):
            value, gradient = loss(newton.x[0])
            values.append(value)
            newton.tell(value, gradient[None])
        values.append(loss(newton.x[0])[0])
        better += min(values) <= min(loss(point)[0] for point in grid) + 1e-9
    assert better >= 98


def test_the_curvature_of_a_parabola_is_found_from_its_gradients() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    curvature = root @ root.T
    steps = rng.normal(size=(6, 4)) * np.logspace(-3, 0, 6)[:, None]
    found = fit_curvature([(step, curvature @ step) for step in steps], 1.0, 4)
    np.testing.assert_allclose(found, curvature, atol=0.02)
    # Along one step alone that direction is known, and every other is typical.
    once = fit_curvature([(np.array([0.1, 0.0]), np.array([0.3, 0.0]))], 5.0, 2)
    np.testing.assert_allclose(once, np.diag([3.0, 5.0]), atol=0.02)
    np.testing.assert_allclose(fit_curvature([], 2.0, 3), 2 * np.eye(3))


def test_every_row_has_weights_of_its_own() -> None:
    wanted = np.array([[0.2, 0.8], [0.9, 0.1], [1.0, 0.0]])
    newton = QuasiNewton(3, 2)
    for _ in range(12):
        newton.tell(float(np.square(newton.x - wanted).sum()), 2 * (newton.x - wanted))
        np.testing.assert_allclose(newton.x.sum(axis=1), 1)
    np.testing.assert_allclose(newton.x, wanted, atol=1e-3)


def test_a_flat_loss_stays_where_it_is() -> None:
    newton = QuasiNewton(1, 3)
    for _ in range(3):
        newton.tell(1.0, np.zeros((1, 3)))
    np.testing.assert_allclose(newton.x, 1 / 3)
