"""Charts as SVG out of `templates/charts/`: pure functions of numbers, colours as CSS variables of the page.

Horizontal places are percentages and letters keep their size, so that a chart fills any width and stays
readable on a phone. What is not a finite number is left out; a chart without a number is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from earec_core.report import page

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a line chart, its points (x, y) in order of x.

    `style` is `thin`, `faint` (in the background), `marked` (a marker at every point, the first and last value
    written) or `loose` (markers and no line).
    """

    name: str
    points: Sequence[Point]
    colour: str
    style: str = "thin"


@dataclass(frozen=True)
class Value:
    """A value with its interval; `style` is that of its bar: `solid`, `light` or `grey`."""

    name: str
    value: float
    low: float
    high: float
    style: str = "solid"

    @property
    def bounded(self) -> bool:
        """Whether the interval is known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def interval(self, digits: int) -> str:
        """The interval in brackets behind the value; nothing where it is not known."""
        return f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.bounded else ""


@dataclass(frozen=True)
class Group:
    """Bars under one heading, in one colour."""

    name: str
    colour: str
    bars: Sequence[Value]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers a round step apart, the first not above `low`, the last not below `high`."""
    span = high - low or abs(high) or 1.0
    raw = span / max(about - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(n * step, 12) for n in range(first, last + 1)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """A centred moving mean over a tenth of the points (three at least)."""
    points = _finite(points)
    half = max(1, len(points) // 20)
    means = []
    for n, (x, _) in enumerate(points):
        reach = min(half, n, len(points) - 1 - n)
        window = [y for _, y in points[n - reach : n + reach + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def lines(
    title: str,
    series: Sequence[Line],
    *,
    y_label: str,
    x_label: str = "step",
    height: int = 210,
    limits: Point | None = None,
) -> Markup:
    """Lines over a common x.

    Args:
        limits: the range of y; default: of the values.
    """
    drawn = [(line, points) for line in series if (points := _finite(line.points))]
    if not drawn:
        return Markup("")
    xs, ys = zip(*(point for _, points in drawn for point in points), strict=True)
    first, last = min(xs), max(xs)
    marks = ticks(*(limits or (min(ys), max(ys))))
    left, right, top, bottom = 12.0, 97.0, 24.0, height - 24.0

    def across(x: float) -> float:
        share = (x - first) / (last - first) if last != first else 0.5
        return left + share * (right - left)

    def down(y: float) -> float:
        return bottom - (y - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    return _fill(
        "lines",
        title=title,
        spoken=[
            f"{line.name} from {' to '.join(f'{y:.3f} at {x_label} {x:g}' for x, y in (points[0], points[-1]))}"
            for line, points in drawn
            if line.style != "faint"
        ],
        height=height,
        y_label=y_label,
        x_label=x_label,
        left=left,
        right=right,
        first=first,
        last=last,
        marks=[(mark, down(mark)) for mark in marks],
        series=[
            (line, [(across(x), down(y), y, f"{line.name}, {x_label} {x:g}: {y:.3f}") for x, y in points])
            for line, points in drawn
        ],
    )


def bars(title: str, groups: Sequence[Group]) -> Markup:
    """Groups of horizontal bars from zero with interval whiskers; each bar is labelled at its end."""
    drawn = [(g, bars) for g in groups if (bars := [bar for bar in g.bars if math.isfinite(bar.value)])]
    if not drawn:
        return Markup("")
    heading, step, gap = 24, 20, 14
    ends = [end for _, bars in drawn for bar in bars for end in (bar.value, bar.high) if math.isfinite(end)]
    marks = ticks(0.0, max(ends) or 1.0)
    placed, spoken, top = [], [], 0
    for group, bars in drawn:
        labels = [f"{bar.name} {bar.value:.3f}{bar.interval(3)}" for bar in bars]
        spoken += [f"{group.name}, {label}" for label in labels]
        tops = range(top + heading, top + heading + step * len(bars), step)
        placed.append((group, top, list(zip(bars, labels, tops, strict=True))))
        top = tops.stop + gap
    return _fill(
        "bars",
        title=title,
        spoken=spoken,
        height=top + 22,
        marks=marks,
        scale=50.0 / marks[-1],
        groups=placed,
    )


def dots(title: str, rows: Sequence[Value]) -> Markup:
    """A point with its interval per row; the best is filled and its interval shaded over all rows."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return Markup("")
    bounds = [b for row in rows for b in (row.value, row.low, row.high) if math.isfinite(b)]
    marks = ticks(min(bounds), max(bounds))
    left, right, step = 1.5, 97.0, 46

    def across(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    labels = [f"{row.value:.4f}{row.interval(4)}" for row in rows]
    return _fill(
        "dots",
        title=title,
        spoken=[f"{row.name} {label}" for row, label in zip(rows, labels, strict=True)],
        height=step * len(rows) + 28,
        best=max(rows, key=lambda row: row.value),
        marks=[(mark, across(mark)) for mark in marks],
        rows=[
            (row, n * step + 34, *map(across, (row.value, row.low, row.high)), label)
            for n, (row, label) in enumerate(zip(rows, labels, strict=True))
        ],
    )


def _fill(chart: str, **data: object) -> Markup:
    return Markup(page.fill(f"charts/{chart}", **data))  # noqa: S704 - the template escapes what it is given


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
