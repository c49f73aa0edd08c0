"""Charts as SVG: pure functions of numbers, colours as CSS variables of the page.

Horizontal places are percentages and letters keep their size, so that a chart fills any width and stays
readable on a phone. What is not a finite number is left out; a chart without a number is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

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
    x0, x1 = min(xs), max(xs)
    marks = ticks(*(limits or (min(ys), max(ys))))
    left, right, top, bottom = 12.0, 97.0, 24.0, height - 24.0

    def place(point: Point) -> Point:
        """Percent of the width, pixels of the height."""
        share = (point[0] - x0) / (x1 - x0) if x1 != x0 else 0.5
        rise = (point[1] - marks[0]) / (marks[-1] - marks[0])
        return left + share * (right - left), bottom - rise * (bottom - top)

    def reads(point: Point) -> str:
        return f"{point[1]:.3f} at {x_label} {point[0]:g}"

    parts = [_text(0, 11, y_label, "start", "soft")]
    for mark in marks:
        _, y = place((x0, mark))
        parts.append(_rule("grid", left, right, y, y))
        parts.append(_text(left, y + 4, f"{mark:g}", "end", "soft", dx=-6))
    for line, points in drawn:
        labels = [f"{line.name}, {x_label} {x:g}: {y:.3f}" for x, y in points]
        parts += _line(line, points, [place(point) for point in points], labels, height)
    parts.append(_text(left, height - 5, f"{x_label} {x0:g}", "start", "soft"))
    if x0 != x1:
        parts.append(_text(right, height - 5, f"{x1:g}", "end", "soft"))
    spoken = [
        f"{line.name} from {reads(points[0])} to {reads(points[-1])}"
        for line, points in drawn
        if line.style != "faint"
    ]
    return _chart(title, spoken, height, parts)


def _line(
    line: Line, points: Sequence[Point], places: Sequence[Point], labels: Sequence[str], height: int
) -> list[Markup]:
    parts = []
    if len(places) > 1 and line.style != "loose":
        path = " ".join(f"{10 * x:.1f},{y:.1f}" for x, y in places)
        stroke = _tag("polyline", class_=line.style, points=path, stroke=line.colour)
        # A drawing of its own, stretched to the width: points of a line cannot be percentages.
        stretched = {"viewBox": f"0 0 1000 {height}", "preserveAspectRatio": "none"}
        parts.append(_tag("svg", stroke, x=0, y=0, width="100%", height=height, **stretched))
    if line.style in ("marked", "loose"):
        parts += [_circle(x, y, line.colour, label) for (x, y), label in zip(places, labels, strict=True)]
    if line.style == "marked":
        for n, anchor in ((0, "start"), (-1, "end")) if len(points) > 1 else ((0, "middle"),):
            x, y = places[n]
            parts.append(_text(x, max(y - 10, 21), f"{points[n][1]:.2f}", anchor, "halo"))
    return parts


def bars(title: str, groups: Sequence[Group]) -> Markup:
    """Groups of horizontal bars from zero with interval whiskers; each bar is labelled at its end."""
    finite = [(group, [bar for bar in group.bars if math.isfinite(bar.value)]) for group in groups]
    drawn = [(group, bars) for group, bars in finite if bars]
    if not drawn:
        return Markup("")
    step, reach = 20, 66.0
    ends = [end for _, bars in drawn for bar in bars for end in (bar.value, bar.high) if math.isfinite(end)]
    marks = ticks(0.0, max(ends) or 1.0)
    scale = reach / marks[-1]
    height = sum(24 + step * len(bars) + 14 for _, bars in drawn) + 22
    parts, spoken, y = [], [], 0.0
    for mark in marks:
        parts.append(_rule("grid", mark * scale, mark * scale, 4, height - 22))
        parts.append(_text(mark * scale, height - 6, f"{mark:g}", "middle" if mark else "start", "soft"))
    for group, bars in drawn:
        parts.append(_text(0, y + 17, group.name, "start", "strong halo", style=f"fill:{group.colour}"))
        y += 24
        for bar in bars:
            label = f"{bar.name} {bar.value:.3f}{_bounds(bar.low, bar.high)}"
            spoken.append(f"{group.name}, {label}")
            parts += _bar(bar, label, y, scale, group.colour)
            y += step
        y += 14
    return _chart(title, spoken, height, parts)


def _bar(bar: Value, label: str, y: float, scale: float, colour: str) -> list[Markup]:
    fill = "var(--grey)" if bar.style == "grey" else colour
    size = {"width": f"{max(bar.value * scale, 0.2):.2f}%", "height": 14, "rx": 2}
    parts = [_tag("rect", _tag("title", label), class_=bar.style, x=0, y=f"{y:.1f}", **size, fill=fill)]
    end = bar.value * scale
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        low, high = bar.low * scale, bar.high * scale
        parts.append(_rule("whisker", low, high, y + 7, y + 7))
        parts += [_rule("whisker", x, x, y + 4, y + 10) for x in (low, high)]
        end = max(end, high)
    value, name = _tag("tspan", f"{bar.value:.2f} ", class_="strong"), _tag("tspan", bar.name, class_="soft")
    return [*parts, _text(end, y + 11.5, value + name, "start", "halo", dx=8)]


def dots(title: str, rows: Sequence[Value]) -> Markup:
    """A point with its interval per row; the best is filled and its interval shaded over all rows."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return Markup("")
    bounds = [b for row in rows for b in (row.value, row.low, row.high) if math.isfinite(b)]
    marks = ticks(min(bounds), max(bounds))
    left, right, step = 1.5, 97.0, 46
    height = step * len(rows) + 28

    def place(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    best = max(rows, key=lambda row: row.value)
    parts = []
    if math.isfinite(best.low) and math.isfinite(best.high):
        low, width = f"{place(best.low):.2f}%", f"{place(best.high) - place(best.low):.2f}%"
        parts.append(_tag("rect", class_="band", x=low, y=2, width=width, height=height - 26))
    for n, mark in enumerate(marks):
        anchor = "start" if n == 0 else "end" if n == len(marks) - 1 else "middle"
        parts.append(_rule("grid", place(mark), place(mark), 2, height - 24))
        parts.append(_text(place(mark), height - 7, f"{mark:g}", anchor, "soft"))
    spoken = []
    for n, row in enumerate(rows):
        y = n * step + 34
        label = f"{row.value:.4f}{_bounds(row.low, row.high, 4)}"
        spoken.append(f"{row.name} {label}")
        parts.append(_text(0, y - 15, row.name, "start", "strong halo"))
        parts.append(_text(100, y - 15, label, "end", "soft halo"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(_rule("reach", place(row.low), place(row.high), y, y))
        fill = "var(--ink)" if row is best else "var(--card)"
        parts.append(_circle(place(row.value), y, fill, f"{row.name}: {label}", "var(--ink)"))
    return _chart(title, spoken, height, parts)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _bounds(low: float, high: float, digits: int = 3) -> str:
    known = math.isfinite(low) and math.isfinite(high)
    return f" [{low:.{digits}f}, {high:.{digits}f}]" if known else ""


def _tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element, all that comes in escaped; `stroke_width` is the attribute stroke-width, `class_` is class."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, shown, Markup("").join(inside))


def _rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return _tag("line", class_=kind, x1=f"{x1:.2f}%", x2=f"{x2:.2f}%", y1=f"{y1:.1f}", y2=f"{y2:.1f}")


def _circle(x: float, y: float, fill: str, label: str, stroke: str = "var(--card)") -> Markup:
    place = {"cx": f"{x:.2f}%", "cy": f"{y:.1f}", "r": 5}
    return _tag("circle", _tag("title", label), **place, fill=fill, stroke=stroke, stroke_width=1.5)


def _text(x: float, y: float, words: str, anchor: str, kind: str, **more: object) -> Markup:
    return _tag("text", words, class_=kind, x=f"{x:.2f}%", y=f"{y:.1f}", text_anchor=anchor, **more)


def _chart(title: str, spoken: Sequence[str], height: int, parts: Sequence[str]) -> Markup:
    """The whole picture, which can be read aloud."""
    described = (_tag("title", title), _tag("desc", f"{'; '.join(spoken)}."))
    look = {"class_": "chart", "role": "img", "aria_label": title, "width": "100%", "height": height}
    return _tag("svg", *described, *parts, **look)
