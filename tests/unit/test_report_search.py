"""The page of a search: barycentric geometry, escaping, numbers that are none."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.artifacts import DataRecord
from earec_core.errors import UsageError
from earec_core.report import write_search
from earec_core.report.search import place, render_search
from earec_core.search import Evaluation, SearchResult

HOSTILE = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Fails where a tag does not close the one that is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def found(names: list[str], values: list[float], **more: Any) -> SearchResult:
    rng = np.random.default_rng(0)
    path = tuple(
        Evaluation(dict(zip(names, rng.dirichlet(np.ones(len(names))).tolist(), strict=True)), value, 0.5)
        for value in values
    )
    settings: dict[str, Any] = {
        "strategy": "grid", "objective": "loss", "best": path[0], "path": path, "steps": (),
        "folder": Path(), "complete": True, "data": DataRecord(name="things", digest="d"), **more,
    }  # fmt: skip
    return SearchResult(**settings)


def steps(names: str, *shares: list[float]) -> tuple[Evaluation, ...]:
    return tuple(
        Evaluation(dict(zip(names, row, strict=True)), 2.0 - i / 10, 0.5) for i, row in enumerate(shares)
    )


def test_a_weighting_lies_where_its_weights_say() -> None:
    corners = np.array([place(unit) for unit in np.eye(3).tolist()])
    sides = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert sides == pytest.approx([sides[0]] * 3)
    assert corners[0][1] < corners[1][1] == pytest.approx(corners[2][1])  # the first corner is on top
    assert corners[1][0] < corners[0][0] < corners[2][0]
    np.testing.assert_allclose(place([1 / 3] * 3), corners.mean(0))
    for weights in np.random.default_rng(1).dirichlet(np.ones(3), 20).tolist():
        point = np.array(place(weights))
        for i in range(3):
            a, b = np.delete(corners, i, axis=0)
            (ux, uy), (vx, vy) = b - a, point - a
            distance = abs(ux * vy - uy * vx) / np.hypot(ux, uy)
            assert distance == pytest.approx(weights[i] * sides[0] * math.sin(math.pi / 3))


def test_dots_and_the_best() -> None:
    drawn = render_search(one := found(["a", "b", "c"], [1.0, 2.0, 1.25, math.nan, math.inf]), "T")
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"[^>]*fill-opacity="([\d.]+)"', drawn)
    expected = [(1, 0.1), (2, 0.1 + 0.9 * 0.75), (0, 1.0)]  # worst first, best on top
    for (x, y, opacity), (n, strength) in zip(dots, expected, strict=True):
        place_x, place_y = place([one.path[n].weights[name] for name in "abc"])
        assert (float(x), float(y)) == pytest.approx((place_x, place_y), abs=0.06)
        assert float(opacity) == pytest.approx(strength, abs=0.01)
    ring = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="10"', drawn)
    assert ring == [dots[-1][:2]]
    assert "worst 2.0000" in drawn
    assert "best 1.0000" in drawn


def test_more_is_better_but_for_the_loss() -> None:
    drawn = render_search(found(["a", "b", "c"], [1.0, 2.0], objective="ndcg@10"), "T")
    assert "worst 1.0000" in drawn
    assert "best 2.0000" in drawn


def test_the_steps_with_a_gradient_are_a_line_from_start_to_end(tmp_path: Path) -> None:
    shares = [[0.2, 0.3, 0.5], [math.nan] * 3, [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]
    one = found(["a", "b", "c"], [1.0], steps=steps("abc", *shares), strategy="learn")
    drawn = render_search(one, "T")
    walked = [place(row) for row in shares if not math.isnan(row[0])]
    assert f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in walked)}"' in drawn
    for (x, y), name in ((walked[0], "start"), (walked[-1], "end")):
        corner = f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" '
        assert re.search(re.escape(corner) + rf"[^>]*><title>{name} of the path", drawn)
    page = write_search(one, tmp_path / "new" / "page.html", title="T").read_text()
    assert "1 evaluation, 4 of them with a gradient" in page
    assert 'aria-label="Loss at each step"' in page
    assert "The search came to its end" in page


def test_two_modalities_are_drawn_over_the_first_weight() -> None:
    one = found(["a", "b"], [3.0, 1.0, 2.0], steps=steps("ab", [0.5, 0.5], [0.9, 0.1]))
    page = render_search(one, "T")
    dots = re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)"', page)
    weights = [e.weights["a"] for e in one.path]
    heights = [float(y) for _, y in dots]
    assert np.corrcoef([float(x) for x, _ in dots], weights)[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(heights, [3.0, 1.0, 2.0])[0, 1] == pytest.approx(-1, abs=1e-4)  # down is positive
    assert page.count("<polyline") == 2  # the loss by share, and by step
    assert "descent" not in page.lower()
    assert "weight of a" in page


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c", "d"]])
def test_other_numbers_of_modalities_have_the_table_alone(names: list[str]) -> None:
    page = render_search(found(names, [1.0]), "T")
    assert "<table " in page
    assert "<svg" not in page


def test_the_ten_best_come_first_and_no_number_comes_last() -> None:
    values = [math.nan, 0.3, math.inf, 0.1, 0.2]
    for objective, order in (("loss", [0.1, 0.2, 0.3]), ("rouge", [0.3, 0.2, 0.1])):
        page = render_search(found(["a", "b", "c", "d"], values, objective=objective), "T")
        rows = re.findall(r"<td class=n>([\d.–]+)</td><td class=n>0\.5</td></tr>", page)
        assert rows == [*(f"{v:.4f}" for v in order), "–", "–"]
    many = render_search(found(["a", "b", "c", "d"], [n / 100 for n in range(25)]), "T")
    assert many.count("<tr>") == 11
    assert "The best 10 of 25 evaluations" in many


@pytest.mark.parametrize("strategy", ["grid", "learn", "bayes"])
def test_a_search_that_the_budget_ended_says_so(strategy: str) -> None:
    page = render_search(found(["a", "b"], [1.0], strategy=strategy, complete=False), "T")
    assert "budget ended" in page
    assert "came to its end" not in page


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("values", [[1.0, 1.0], [math.nan], [math.inf, -math.inf], [0.5, math.nan]])
def test_page_is_whole_and_asks_nothing_of_the_outside(names: list[str], values: list[float]) -> None:
    hostile = [f"{HOSTILE}{name}" for name in names]
    steps = (
        Evaluation(dict.fromkeys(hostile, math.nan), math.nan, 0.5),
        Evaluation(dict.fromkeys(hostile, 1 / len(names)), 1.0, 0.5),
    )
    one = found(hostile, values, steps=steps)
    layers = {0: dict.fromkeys(hostile, 0.125), 1: dict.fromkeys(hostile, math.nan)}
    best = Evaluation(dict.fromkeys(hostile, math.nan), values[0], 1.0, layers)
    for page in (render_search(one, HOSTILE), render_search(found(hostile, values, best=best), HOSTILE)):
        assert "script" not in Page(page).tags
        assert "<script" not in page
        assert not re.search(r"https?:|url\(|@import| src=| href=", page)
        assert "default-src 'none'" in page
        numbers = re.findall(r' (?:x|y|cx|cy|points|fill-opacity)="([^"]*)"', page)
        assert not any("nan" in number or "inf" in number for number in numbers)


def test_weights_of_layers_are_shown() -> None:
    best = Evaluation({"a": 0.5, "b": 0.5}, 1.0, 1.0, {0: {"a": 0.125, "b": 0.875}, 1: {"a": 1.0, "b": 0.0}})
    page = render_search(found(["a", "b"], [1.0], best=best), "T")
    table = page[page.index("Layer by layer") :]
    assert re.findall(r"<td class=n>([\d.]+)", table) == ["0.125", "0.875", "1.000", "0.000"]
    assert "Layer by layer" not in render_search(found(["a", "b"], [1.0]), "T")


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_search(found(["a", "b"], [1.0]), tmp_path / "file" / "page.html", title="T")
