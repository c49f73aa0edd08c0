"""The page of a search over composition weights: its path, in a triangle where three modalities are weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from earec_core.errors import UsageError
from earec_core.report import charts
from earec_core.report.render import page, put
from earec_core.search import Evaluation, Found

_SIDE, _MARGIN = 420.0, 40.0


def write_search(found: Found, target: Path, *, title: str) -> Path:
    """Write the page, complete or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put(target, render_search(found, title))
    except OSError as error:
        raise UsageError(
            f"The report {target} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error
    return target


def render_search(found: Found, title: str) -> str:
    """The page as HTML; everything that comes from data is escaped."""
    names = list(found.best.weights)
    best = ", ".join(f"{name} {weight:.3f}" for name, weight in found.best.weights.items())
    lead = (
        f"{found.strategy} on {found.objective}, {len(found.path)} evaluations"
        + (f" and {len(found.steps)} gradient steps" if found.steps else "")
        + f". Best: {best}, {found.objective} {found.best.value:.4f}."
        + ("" if found.complete else " The budget ended before the search did.")
    )
    sections = []
    if len(names) == 3:
        sections.append(f"<h2>Where it looked</h2>{ternary(found)}")
    elif len(names) == 2:
        points = sorted((e.weights[names[0]], e.value) for e in found.path)
        line = charts.Line(found.objective, points, "var(--m0)", marked=True)
        chart = charts.lines(
            f"{found.objective} by the weight of {names[0]}", [line], y_label=found.objective
        )
        sections.append(f"<h2>Where it looked</h2>{chart}")
    if found.steps:
        losses = [(float(s["step"]), float(s["loss"])) for s in found.steps]
        chart = charts.lines(
            "Loss of each step's batch", [charts.Line("loss", losses, "var(--m0)")], y_label="loss"
        )
        sections.append(f"<h2>How it descended</h2>{chart}")
    ordered = sorted(found.path, key=lambda e: e.value, reverse=found.objective != "loss")[:10]
    sections.append(f"<h2>The best weightings</h2>{_evaluations(ordered, names, found.objective)}")
    if found.best.layers:
        sections.append(f"<h2>Layer by layer</h2>{_layers(found.best.layers, names)}")
    return page(title, lead, "".join(f"<section>{section}</section>" for section in sections))


def place(weights: Sequence[float]) -> tuple[float, float]:
    """Barycentric to page coordinates: the first weight's corner is on top, then left, then right."""
    top, _, right = (w / sum(weights) for w in weights)
    return _MARGIN + _SIDE * (right + top / 2), _MARGIN + _SIDE * math.sqrt(3) / 2 * (1 - top)


def ternary(found: Found) -> str:
    """Every evaluation as a dot, the darker the better; the best is ringed, gradient steps are a line."""
    names = list(found.best.weights)
    height = 2 * _MARGIN + _SIDE * math.sqrt(3) / 2
    corners = [place(unit) for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    parts = []
    for t in (i / 10 for i in range(1, 10)):
        rules = (
            ((t, 1 - t, 0), (t, 0, 1 - t)),
            ((1 - t, t, 0), (0, t, 1 - t)),
            ((1 - t, 0, t), (0, 1 - t, t)),
        )
        parts += [_path([place(end) for end in ends], "var(--line)", 0.5) for ends in rules]
    parts.append(_path([*corners, corners[0]], "var(--ink)", 1.0))
    for name, (x, y), dy in zip(names, corners, (-12, 24, 24), strict=True):
        parts.append(
            f'<text x="{x:.1f}" y="{y + dy:.1f}" text-anchor="middle" fill="currentColor">{escape(name)}</text>'
        )
    if found.steps:
        parts.append(_path([_at(s["weights"], names) for s in found.steps], "var(--m1)", 2.0))
    finite = [e for e in found.path if math.isfinite(e.value)]
    low, high = (f((e.value for e in finite), default=0.0) for f in (min, max))
    for one in sorted(finite, key=lambda e: e.value, reverse=found.objective == "loss"):
        share = (one.value - low) / (high - low) if high > low else 1.0
        good = 1 - share if found.objective == "loss" else share
        x, y = _at(one.weights, names)
        label = ", ".join(f"{name} {one.weights[name]:.3f}" for name in names)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="var(--m0)" fill-opacity="{0.1 + 0.9 * good:.2f}">'
            f"<title>{escape(label)}: {one.value:.4f}</title></circle>"
        )
    x, y = _at(found.best.weights, names)
    parts.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="none" stroke="var(--ink)" stroke-width="2"/>'
    )
    worst, best = (high, low) if found.objective == "loss" else (low, high)
    return (
        f'<svg viewBox="0 0 {_SIDE + 2 * _MARGIN:.0f} {height:.0f}" role="img" style="max-width:34rem">'
        f"<title>Weightings and their {escape(found.objective)}</title>{''.join(parts)}</svg>"
        f"<p>Darker is better: from {worst:.4f} to {best:.4f}, which is ringed.</p>"
    )


def _at(weights: Mapping[str, float], names: Sequence[str]) -> tuple[float, float]:
    return place([weights[name] for name in names])


def _path(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _evaluations(path: Sequence[Evaluation], names: Sequence[str], objective: str) -> str:
    rows = [[*(f"{e.weights[n]:.4f}" for n in names), f"{e.value:.4f}", f"{e.seconds:.1f}"] for e in path]
    return _table([*names, objective, "seconds"], rows)


def _layers(layers: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> str:
    return _table(["layer", *names], [[str(n), *(f"{w[m]:.3f}" for m in names)] for n, w in layers.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
