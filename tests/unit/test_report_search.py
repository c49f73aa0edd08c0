"""The page of a search: barycentric geometry, escaping, numbers that are none."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from earec_core.report.search import place, render_search, ternary, write_search
from earec_core.search import Evaluation, Found


def found(names: list[str], values: list[float], **more: object) -> Found:
    rng = np.random.default_rng(0)
    path = tuple(
        Evaluation(dict(zip(names, rng.dirichlet(np.ones(len(names))).tolist(), strict=True)), value, 0.5)
        for value in values
    )
    return Found(**{
        "strategy": "grid", "objective": "loss", "best": path[0], "path": path, "steps": (),
        "folder": Path(), "complete": True, **more,
    })  # fmt: skip


def test_a_weighting_lies_where_its_weights_say() -> None:
    corners = np.array([place(unit) for unit in np.eye(3)])
    sides = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert sides == pytest.approx([sides[0]] * 3)
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.6, 0.0, 0.4], [0.2, 0.5, 0.3]):
        np.testing.assert_allclose(place(weights), np.array(weights) @ corners)
    assert corners[0][1] < corners[1][1] == pytest.approx(corners[2][1])  # the first corner is on top


def test_dots_steps_and_the_best(tmp_path: Path) -> None:
    steps = tuple(
        {"step": i, "loss": 2.0 - i / 10, "weights": {"a": 0.2, "b": 0.3, "c": 0.5}} for i in (1, 2)
    )
    one = found(["a", "b", "c"], [1.0, 2.0, math.nan, math.inf], steps=steps, strategy="learn")
    drawn = ternary(one)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"[^>]*fill-opacity="([\d.]+)"', drawn)
    assert [float(opacity) for _, _, opacity in dots] == [0.1, 1.0]  # worst first, best on top
    x, y = place([one.best.weights[n] for n in "abc"])
    assert f'cx="{x:.1f}" cy="{y:.1f}" r="10"' in drawn
    page = write_search(one, tmp_path / "new" / "page.html", title="T").read_text()
    assert "2 gradient steps" in page
    assert not re.search(r"https?://", page)


def test_other_numbers_of_modalities_have_a_table() -> None:
    for names in (["a", "b"], ["a", "b", "c", "d"]):
        page = render_search(found(names, [2.0, 1.0], objective="rouge", complete=False), "T")
        assert "<table>" in page
        assert ("<svg" in page) == (len(names) == 2)
        assert "budget ended" in page
        first, second = (page.index(f"<td>{v:.4f}</td>") for v in (2.0, 1.0))
        assert first < second  # ROUGE-L: the larger is better


def test_names_are_escaped() -> None:
    page = render_search(found(["<b>", "x", "y"], [1.0]), "<script>")
    assert "<b>" not in page
    assert "<script>" not in page
    HTMLParser().feed(page)


def test_weights_of_layers_are_shown() -> None:
    best = Evaluation({"a": 0.5, "b": 0.5}, 1.0, 1.0, {0: {"a": 0.125, "b": 0.875}, 1: {"a": 1.0, "b": 0.0}})
    page = render_search(found(["a", "b"], [1.0], best=best), "T")
    assert "Layer by layer" in page
    assert "0.875" in page
