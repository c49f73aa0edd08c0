"""Charts as SVG strings: pure functions of numbers. Colours are CSS variables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]
_WIDTH = 640


def lines(
    title: str, series: Mapping[str, Sequence[Point]], colours: Mapping[str, str], *, dots: set[str]
) -> str:
    """A line per series over a common x; those in `dots` with a marker at each point."""
    points = [p for one in series.values() for p in one]
    if not points:
        return ""
    width, height, left, bottom = 420, 220, 44, 26
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x0, x1, y0, y1 = min(xs), max(max(xs), min(xs) + 1), min(0.0, *ys), max(ys) * 1.05 or 1.0

    def at(p: Point) -> str:
        x = left + (p[0] - x0) / (x1 - x0) * (width - left - 10)
        y = 10 + (y1 - p[1]) / (y1 - y0) * (height - bottom - 10)
        return f"{x:.1f},{y:.1f}"

    parts = [_axis(y0, y1, left, width, 10, height - bottom)]
    for name, one in series.items():
        colour = colours[name]
        if len(one) > 1:
            path = " ".join(at(p) for p in one)
            wide = 2.5 if name in dots else 1.2
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}"/>')
        if name in dots:
            for p in one:
                x, y = at(p).split(",")
                parts.append(
                    f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"><title>{p[1]:.3f}</title></circle>'
                )
    parts.append(_text(width - 10, height - 6, f"step {x1:.0f}", "end"))
    parts.append(_text(left, height - 6, f"{x0:.0f}", "start"))
    return _svg(title, width, height, parts)


def bars(
    title: str,
    groups: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]],
    colours: Mapping[str, str],
) -> str:
    """Grouped horizontal bars with interval whiskers; values are (mean, low, high)."""
    if not groups:
        return ""
    left, bar, gap = 110, 17, 16
    top = max(v[2] for _, values in groups for v in values.values()) or 1.0
    height = sum(len(values) * bar + gap for _, values in groups) + 10
    parts, y = [], 8
    scale = (_WIDTH - left - 70) / top
    for group, values in groups:
        parts.append(_text(left - 8, y + len(values) * bar / 2 + 4, group, "end", bold=True))
        for name, (mean, low, high) in values.items():
            mid, end = y + bar / 2, left + mean * scale
            parts.append(
                f'<rect x="{left}" y="{y + 1}" width="{max(mean * scale, 1):.1f}" height="{bar - 3}" rx="2" '
                f'fill="{colours[name]}"><title>{escape(name)}: {mean:.3f} [{low:.3f}, {high:.3f}]</title></rect>'
                f'<line x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}" y1="{mid}" y2="{mid}" '
                'stroke="var(--ink)" stroke-width="1.2"/>'
            )
            parts.append(_text(max(end, left + high * scale) + 6, mid + 4, f"{mean:.3f}", "start"))
            y += bar
        y += gap
    return _svg(title, _WIDTH, height, parts)


def dots(title: str, rows: Sequence[tuple[str, float, float]], colour: str) -> str:
    """A point with its 95% interval per row: (name, value, standard error)."""
    if not rows:
        return ""
    left, step = 210, 34
    low = min(0.0, *(v - 1.96 * e for _, v, e in rows))
    high = max(v + 1.96 * e for _, v, e in rows) or 1.0
    scale = (_WIDTH - left - 70) / (high - low)
    height = step * len(rows) + 12
    parts = []
    for i, (name, value, error) in enumerate(rows):
        y, x = i * step + step / 2 + 4, left + (value - low) * scale
        a, b = (left + (value + side * 1.96 * error - low) * scale for side in (-1, 1))
        parts.append(_text(left - 12, y + 4, name, "end", bold=True))
        parts.append(
            f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3" '
            'opacity="0.45"/>'
            f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{colour}">'
            f"<title>{escape(name)}: {value:.4f} ± {1.96 * error:.4f}</title></circle>"
        )
        parts.append(_text(b + 8, y + 4, f"{value:.3f}", "start"))
    return _svg(title, _WIDTH, height, parts)


def _axis(y0: float, y1: float, left: int, right: int, top: int, bottom: int) -> str:
    parts = []
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        y = bottom - (bottom - top) * i / 4
        parts.append(f'<line x1="{left}" x2="{right - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(_text(left - 6, y + 4, f"{value:.2g}", "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width} {height:.0f}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
