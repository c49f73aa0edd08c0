"""Charts as SVG strings: pure functions of numbers, colours as CSS variables of the page.

Horizontal places are percentages and letters keep their size, so that a chart fills any width and stays
readable on a phone. What is not a finite number is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a line chart.

    Attributes:
        points: (x, y) in order of x.
        colour: CSS colour.
        marked: draw a marker at every point and write the first and last value; otherwise a thin line.
        faint: draw it in the background.
        loose: draw a marker at every point and no line.
    """

    name: str
    points: Sequence[Point]
    colour: str
    marked: bool = False
    faint: bool = False
    loose: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar with its interval; `style` is `solid`, `light` or `grey`."""

    name: str
    mean: float
    low: float
    high: float
    style: str = "solid"


@dataclass(frozen=True)
class Group:
    """Bars under one heading, in one colour."""

    name: str
    colour: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    name: str
    value: float
    low: float
    high: float


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
    found = []
    for n, (x, _) in enumerate(points):
        reach = min(half, n, len(points) - 1 - n)
        part = [y for _, y in points[n - reach : n + reach + 1]]
        found.append((x, sum(part) / len(part)))
    return found


def lines(
    title: str,
    series: Sequence[Line],
    *,
    y_label: str,
    x_label: str = "step",
    height: int = 210,
    limits: Point | None = None,
) -> str:
    """Lines over a common x; empty without a point.

    Args:
        limits: the range of y; default: of the values.
    """
    kept = [(one, points) for one in series if (points := _finite(one.points))]
    if not kept:
        return ""
    every = [p for _, points in kept for p in points]
    x0, x1 = min(p[0] for p in every), max(p[0] for p in every)
    marks = ticks(*(limits or (min(p[1] for p in every), max(p[1] for p in every))))
    top, bottom, left, right = 24.0, height - 24.0, 12.0, 97.0
    flat = x1 == x0

    def place(p: Point) -> Point:
        """Percent of the width, pixels of the height."""
        x = (left + right) / 2 if flat else left + (p[0] - x0) / (x1 - x0) * (right - left)
        return x, bottom - (p[1] - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    parts = [_text("0", 11, y_label, "start", "soft")]
    for mark in marks:
        y = place((x0, mark))[1]
        parts.append(_rule(f"{left}%", f"{right}%", y, y, "grid"))
        parts.append(_text(f"{left}%", y + 4, f"{mark:g}", "end", "soft", shift=-6))
    for one, points in kept:
        if len(points) > 1 and not one.loose:
            path = " ".join(f"{10 * x:.1f},{y:.1f}" for x, y in map(place, points))
            kind = "marked" if one.marked else "faint" if one.faint else "thin"
            # A drawing of its own, stretched to the width: points of a line cannot be percentages.
            parts.append(
                f'<svg x="0" y="0" width="100%" height="{height}" viewBox="0 0 1000 {height}" '
                f'preserveAspectRatio="none"><polyline class="{kind}" points="{path}" '
                f'stroke="{one.colour}"/></svg>'
            )
        if one.marked or one.loose:
            parts += [
                _circle(*place(p), one.colour, f"{one.name}, {x_label} {p[0]:g}: {p[1]:.3f}") for p in points
            ]
        if one.marked:
            ends = [(points[0], "start"), (points[-1], "end")] if len(points) > 1 else [(points[0], "middle")]
            for p, anchor in ends:
                x, y = place(p)
                parts.append(_text(f"{x:.2f}%", max(y - 10, 21), f"{p[1]:.2f}", anchor, "halo"))
    parts.append(_text(f"{left}%", height - 5, f"{x_label} {x0:g}", "start", "soft"))
    if not flat:
        parts.append(_text(f"{right}%", height - 5, f"{x1:g}", "end", "soft"))
    says = "; ".join(
        f"{one.name} from {points[0][1]:.3f} at {x_label} {points[0][0]:g} to {points[-1][1]:.3f} "
        f"at {x_label} {points[-1][0]:g}"
        for one, points in kept
        if not one.faint
    )
    return _svg(title, f"{says}.", height, parts)


def bars(title: str, groups: Sequence[Group]) -> str:
    """Groups of horizontal bars from zero with interval whiskers; each bar is labelled at its end."""
    shown = [(g, [b for b in g.bars if math.isfinite(b.mean)]) for g in groups]
    shown = [(g, found) for g, found in shown if found]
    if not shown:
        return ""
    thick, step, reach = 14, 20, 66.0
    ends = [max(b.mean, b.high) if math.isfinite(b.high) else b.mean for _, found in shown for b in found]
    marks = ticks(0.0, max(ends) or 1.0)
    scale = reach / marks[-1]
    height = sum(24 + step * len(found) + 14 for _, found in shown) + 22
    parts = []
    for mark in marks:
        parts.append(_rule(f"{mark * scale:.2f}%", f"{mark * scale:.2f}%", 4, height - 22, "grid"))
        anchor = "start" if mark == 0 else "middle"
        parts.append(_text(f"{mark * scale:.2f}%", height - 6, f"{mark:g}", anchor, "soft"))
    y, says = 0.0, []
    for group, found in shown:
        parts.append(_text("0", y + 17, group.name, "start", "strong halo", colour=group.colour))
        y += 24
        for bar in found:
            fill = "var(--grey)" if bar.style == "grey" else group.colour
            light = ' class="light"' if bar.style == "light" else ""
            label = f"{bar.name} {bar.mean:.3f}{_bounds(bar.low, bar.high)}"
            says.append(f"{group.name}, {label}")
            parts.append(
                f'<rect x="0" y="{y:.1f}" width="{max(bar.mean * scale, 0.2):.2f}%" height="{thick}" rx="2" '
                f'fill="{fill}"{light}><title>{escape(label)}</title></rect>'
            )
            end = bar.mean * scale
            if math.isfinite(bar.low) and math.isfinite(bar.high):
                parts.append(_whisker(bar.low * scale, bar.high * scale, y + thick / 2))
                end = max(end, bar.high * scale)
            parts.append(
                f'<text x="{end:.2f}%" dx="8" y="{y + 11.5:.1f}" class="halo"><tspan class="strong">'
                f'{bar.mean:.2f}</tspan> <tspan class="soft">{escape(bar.name)}</tspan></text>'
            )
            y += step
        y += 14
    return _svg(title, f"{'; '.join(says)}.", height, parts)


def dots(title: str, rows: Sequence[Dot]) -> str:
    """A point with its interval per row; the best is filled and its interval shaded over all rows."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ""
    bounds = [b for row in rows for b in (row.value, row.low, row.high) if math.isfinite(b)]
    marks = ticks(min(bounds), max(bounds))
    left, right, step = 1.5, 97.0, 46
    height = step * len(rows) + 28

    def place(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    best = max(rows, key=lambda row: row.value)
    parts = []
    if math.isfinite(best.low) and math.isfinite(best.high):
        x, wide = place(best.low), place(best.high) - place(best.low)
        parts.append(f'<rect class="band" x="{x:.2f}%" y="2" width="{wide:.2f}%" height="{height - 26}"/>')
    for n, mark in enumerate(marks):
        x = place(mark)
        parts.append(_rule(f"{x:.2f}%", f"{x:.2f}%", 2, height - 24, "grid"))
        anchor = "start" if n == 0 else "end" if n == len(marks) - 1 else "middle"
        parts.append(_text(f"{x:.2f}%", height - 7, f"{mark:g}", anchor, "soft"))
    says = []
    for n, row in enumerate(rows):
        y = n * step + 34
        label = f"{row.value:.4f}{_bounds(row.low, row.high, 4)}"
        says.append(f"{row.name} {label}")
        parts.append(_text("0", y - 15, row.name, "start", "strong halo"))
        parts.append(_text("100%", y - 15, label, "end", "soft halo"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(_rule(f"{place(row.low):.2f}%", f"{place(row.high):.2f}%", y, y, "reach"))
        fill = "var(--ink)" if row is best else "var(--card)"
        parts.append(_circle(place(row.value), y, fill, f"{row.name}: {label}", "var(--ink)"))
    return _svg(title, f"{'; '.join(says)}.", height, parts)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]


def _bounds(low: float, high: float, digits: int = 3) -> str:
    known = math.isfinite(low) and math.isfinite(high)
    return f" [{low:.{digits}f}, {high:.{digits}f}]" if known else ""


def _whisker(low: float, high: float, y: float) -> str:
    caps = "".join(_rule(f"{x:.2f}%", f"{x:.2f}%", y - 3, y + 3, "whisker") for x in (low, high))
    return _rule(f"{low:.2f}%", f"{high:.2f}%", y, y, "whisker") + caps


def _rule(x1: str, x2: str, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _circle(x: float, y: float, fill: str, label: str, stroke: str = "var(--card)") -> str:
    return (
        f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="5" fill="{fill}" stroke="{stroke}" stroke-width="1.5">'
        f"<title>{escape(label)}</title></circle>"
    )


def _text(
    x: str, y: float, text: str, anchor: str, kind: str, *, shift: int = 0, colour: str | None = None
) -> str:
    style = f' style="fill:{colour}"' if colour else ""
    moved = f' dx="{shift}"' if shift else ""
    return (
        f'<text class="{kind}" x="{x}"{moved} y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
    )


def _svg(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" width="100%" height="{height:.0f}" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
