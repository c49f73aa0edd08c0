"""The measures of `earec compare` against brute force in numpy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from earec_core.artifacts import DataRecord, ItemVectors, VectorsManifest
from earec_core.artifacts.tables import TableShape
from earec_core.compare import neighbours as module
from earec_core.compare.neighbours import neighbours
from earec_core.compare.rows import contrast, corrected, overlap
from earec_core.compare.texts import scores
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.explain import Explanation, Text
from earec_core.recommend.scaling import scaled

N, K = 90, 10


def _vectors(table: np.ndarray) -> ItemVectors:
    shape = TableShape(items=len(table), d=table.shape[1])
    manifest = VectorsManifest(data=DataRecord(name="d", digest="0" * 64), shapes=shape, method="given")
    return ItemVectors("0" * 64, table.astype(np.float32), manifest)


def _nearest(table: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    """All cosines after scaling, and each row's nearest others, by plain loops."""
    config = RecommenderConfig(scaling=scaling)
    x = scaled(torch.from_numpy(table.astype(np.float32)), config).double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    nearest = []
    for row in range(len(x)):
        others = [other for other in range(len(x)) if other != row]
        nearest.append(sorted(others, key=lambda other: -cosines[row, other])[:K])
    return cosines, np.array(nearest)


@pytest.mark.parametrize("scaling", ["whiten", "none"])
def test_overlap_and_cosines_are_those_of_brute_force(scaling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N, 8))
    b = np.concatenate([a[:, :5] + 0.7 * rng.normal(size=(N, 5)), rng.normal(size=(N, 6))], 1)
    config = RecommenderConfig(scaling=scaling)
    # Two items without vectors, by one model each, take no part.
    with_gaps = [np.insert(a, [3, 50], 0, axis=0), np.insert(b, [3, 50], 0, axis=0)]
    with_gaps[1][51] = 1.0
    shared, by_a, by_b = neighbours(*map(_vectors, with_gaps), config, 0)
    cosines_a, nearest_a = _nearest(a, scaling)
    cosines_b, nearest_b = _nearest(b, scaling)
    each = np.array([len(set(x) & set(y)) / K for x, y in zip(nearest_a, nearest_b, strict=True)])
    assert shared.overlap == pytest.approx(each.mean())
    assert shared.n == N
    assert shared.chance == pytest.approx(K / (N - 1))
    assert shared.low is not None
    assert shared.high is not None
    assert shared.low == pytest.approx(each.mean() - 1.96 * stats.sem(each), abs=1e-4)
    assert shared.high == pytest.approx(each.mean() + 1.96 * stats.sem(each), abs=1e-4)
    for row, nearest in ((by_a, nearest_a), (by_b, nearest_b)):
        means = [np.take_along_axis(c, nearest, 1).mean() for c in (cosines_a, cosines_b)]
        assert (row.a, row.b) == (pytest.approx(means[0], abs=1e-5), pytest.approx(means[1], abs=1e-5))
        assert row.difference == pytest.approx(means[1] - means[0], abs=1e-5)


def test_the_same_vectors_share_all_and_turned_ones_too() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(N, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    config = RecommenderConfig(scaling="none")
    for other in (table, table @ turn):
        shared, *cosines = neighbours(_vectors(table), _vectors(other), config, 0)
        assert (shared.overlap, shared.low, shared.high) == (1, 1, 1)
        assert all(row.difference == pytest.approx(0, abs=1e-6) for row in cosines)
    few = np.zeros((5, 3))
    few[1] = 1
    with pytest.raises(UsageError, match="Fewer than two items"):
        neighbours(_vectors(few), _vectors(few), config, 0)


def test_a_contrast_is_scipys_paired_test_and_holms_correction() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    rows = [contrast("texts", f"{shift}", a, a + shift + 0.5 * rng.normal(size=200)) for shift in (0.1, 0.05)]
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    ps = []
    for row, shift in zip(rows, (0.1, 0.05), strict=True):
        less = (a + shift + 0.5 * rng.normal(size=200)) - a
        low, high = stats.norm.interval(0.95, less.mean(), stats.sem(less))
        assert (row.difference, row.low, row.high) == tuple(map(pytest.approx, (less.mean(), low, high)))
        ps.append(2 * stats.norm.sf(abs(less.mean()) / stats.sem(less)))
    lists = np.arange(4).reshape(2, 2)
    fixed = [row.p for row in corrected([overlap("texts", "", lists, lists, 0.5), *rows])]
    small, large = sorted(ps)
    assert fixed[0] is None
    assert sorted(fixed[1:]) == pytest.approx([2 * small, max(2 * small, large)])  # type: ignore[type-var]


def _explanation(sources: dict[str, dict[int, float]], modalities: tuple[str, ...]) -> Explanation:
    texts = [
        Text(row, source, "aligned", "t", score)
        for source, rows in sources.items()
        for row, score in rows.items()
    ]
    inputs: Any = dict.fromkeys(modalities)
    return Explanation({}, tuple(texts), (), inputs)


def test_texts_are_paired_over_the_items_and_sources_that_both_have() -> None:
    two = _explanation({"x": {1: 0.5, 2: 0.1}, "y": {1: 0.2}, "all": {1: 0.6, 2: 0.2, 3: 0.9}}, ("x", "y"))
    one = _explanation({"x": {2: 0.3, 4: 1.0}}, ("x",))
    other = _explanation({"y": {1: 0.9, 2: 0.4}}, ("y",))
    found = {row.what: row for row in scores(two, one)}
    assert list(found) == ["ROUGE-L from x", "ROUGE-L from all"]
    assert (found["ROUGE-L from x"].n, found["ROUGE-L from x"].a, found["ROUGE-L from x"].b) == (1, 0.1, 0.3)
    assert found["ROUGE-L from all"].a == 0.2
    assert [row.what for row in scores(one, one)] == ["ROUGE-L from x"]
    (alone,) = scores(one, other)
    assert (alone.what, alone.n, alone.a, alone.b) == ("ROUGE-L from all", 1, 0.3, 0.4)
