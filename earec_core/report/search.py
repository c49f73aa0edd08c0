"""The page of a search over composition weights: its path, in a triangle where three modalities are weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from earec_core.errors import UsageError
from earec_core.report import charts, markup
from earec_core.search import Evaluation, Found

_SIDE, _MARGIN = 420.0, 40.0


def write_search(found: Found, target: Path, *, title: str) -> Path:
    """Write the page, complete or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        markup.put(target, render_search(found, title))
    except OSError as error:
        raise UsageError(
            f"The report {target} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error
    return target


def render_search(found: Found, title: str) -> str:
    """The page as HTML; everything that comes from data is escaped."""
    names = list(found.best.weights)
    sections = []
    if len(names) == 3:
        sections.append(f"<h2>Where it looked</h2>{ternary(found)}")
    elif len(names) == 2:
        sections.append(f"<h2>Where it looked</h2><figure>{_share(found, names[0])}</figure>")
    if found.steps:
        losses = [(float(s["step"]), float(s["loss"])) for s in found.steps]
        chart = charts.lines("Loss at each step", [charts.Line("loss", losses, "var(--m0)")], y_label="loss")
        sections.append(f"<h2>How it descended</h2><figure>{chart}</figure>")
    sections.append(f"<h2>The best weightings</h2>{_evaluations(found, names)}")
    if found.best.layers:
        sections.append(f"<h2>Layer by layer</h2>{_layers(found.best.layers, names)}")
    return markup.page(title, _lead(found), "".join(f"<section>{section}</section>" for section in sections))


def _lead(found: Found) -> str:
    best = ", ".join(f"{name} {markup.number(weight, 3)}" for name, weight in found.best.weights.items())
    if found.complete:
        end = "The search came to its end."
    elif found.strategy == "bayes":
        end = "It has no end of its own: the budget ended it."
    else:
        end = "The budget ended before the search did."
    return (
        f"{found.strategy} on {found.objective}, {_count(len(found.path), 'evaluation')}"
        + (f", {len(found.steps)} of them with a gradient" if found.steps else "")
        + f". Best: {best}, {found.objective} {markup.number(found.best.value, 4)}. {end}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _share(found: Found, name: str) -> str:
    """Of two modalities: the value over the weight of the first, which says the other."""
    steps = [(s["weights"][name], s["loss"]) for s in found.steps]
    dots = [(e.weights[name], e.value) for e in found.path]
    return charts.lines(
        f"{found.objective} by the weight of {name}",
        [
            charts.Line("descent", steps, "var(--m1)"),
            charts.Line(found.objective, dots, "var(--m0)", loose=True),
        ],
        y_label=f"{found.objective}, each dot an evaluation" + ("; the line: the descent" if steps else ""),
        x_label=f"weight of {name}",
    )


def place(weights: Sequence[float]) -> tuple[float, float]:
    """Barycentric to page coordinates: the first weight's corner is on top, then left, then right."""
    top, _, right = (w / sum(weights) for w in weights)
    return _MARGIN + _SIDE * (right + top / 2), _MARGIN + _SIDE * math.sqrt(3) / 2 * (1 - top)


def ternary(found: Found) -> str:
    """Every evaluation as a dot, the stronger the better; the best is ringed, gradient steps are a line."""
    names = list(found.best.weights)
    height = 2 * _MARGIN + _SIDE * math.sqrt(3) / 2
    low_edge = height - _MARGIN + 24
    corners = [place(unit) for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    parts = []
    for t in (i / 10 for i in range(1, 10)):
        rules = (
            ((t, 1 - t, 0), (t, 0, 1 - t)),
            ((1 - t, t, 0), (0, t, 1 - t)),
            ((1 - t, 0, t), (0, 1 - t, t)),
        )
        parts += [_path([place(end) for end in rule], "var(--line)", 1.0) for rule in rules]
    parts.append(_path([*corners, corners[0]], "var(--ink)", 1.0))
    middle = _MARGIN + _SIDE / 2
    ends = ((middle, 24, "middle"), (0, low_edge, "start"), (_SIDE + 2 * _MARGIN, low_edge, "end"))
    for name, (x, y, anchor) in zip(names, ends, strict=True):
        parts.append(_text(x, y, name, anchor))
    walked = _drawable([s["weights"] for s in found.steps], names)
    if walked:
        parts.append(_path(walked, "var(--m1)", 2.0))
        for (x, y), text, fill in ((walked[0], "start", "var(--paper)"), (walked[-1], "end", "var(--m1)")):
            parts.append(
                f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{fill}" stroke="var(--m1)" '
                f'stroke-width="2"><title>{text} of the descent</title></rect>'
            )
            parts.append(_text(x + 14, y - 8, text, "start"))
    worst_first = _ordered(found)[::-1]
    worst, best = (worst_first[0].value, worst_first[-1].value) if worst_first else (math.nan, math.nan)
    for one in worst_first:
        good = (one.value - worst) / (best - worst) if best != worst else 1.0
        label = f"{', '.join(f'{name} {one.weights[name]:.3f}' for name in names)}: {one.value:.4f}"
        for x, y in _drawable([one.weights], names):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="var(--m0)" fill-opacity="{_strength(good):.2f}" '
                f'stroke="var(--m0)"><title>{escape(label)}</title></circle>'
            )
    for x, y in _drawable([found.best.weights], names):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="none" stroke="var(--ink)" stroke-width="2"/>'
        )
    for n in range(10):
        parts.append(
            f'<rect x="{middle - 100 + 20 * n:.1f}" y="{height:.1f}" width="20" height="12" '
            f'fill="var(--m0)" fill-opacity="{_strength(n / 9):.2f}"/>'
        )
    parts.append(_text(middle - 108, height + 12, f"worst {markup.number(worst, 4)}", "end"))
    parts.append(_text(middle + 108, height + 12, f"best {markup.number(best, 4)}", "start"))
    path = " The line is the descent's path from start to end." if walked else ""
    return (
        f'<svg viewBox="0 0 {_SIDE + 2 * _MARGIN:.0f} {height + 20:.0f}" role="img" '
        f'style="display:block;width:100%;max-width:34rem;overflow:visible">'
        f"<title>Weightings and their {escape(found.objective)}</title>{''.join(parts)}</svg>"
        f'<p class="soft">Each dot is an evaluation: the nearer to a corner, the larger that weight; a grid line '
        f"is a tenth. The stronger its colour, the better; the best is ringed.{path}</p>"
    )


def _strength(good: float) -> float:
    return 0.1 + 0.9 * good


def _ordered(found: Found) -> list[Evaluation]:
    """The evaluations with a finite value, best first."""
    finite = [e for e in found.path if math.isfinite(e.value)]
    return sorted(finite, key=lambda e: e.value, reverse=found.objective != "loss")


def _drawable(weightings: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Where the weightings lie, without those that are no numbers."""
    rows = [[weights[name] for name in names] for weights in weightings]
    return [place(row) for row in rows if math.isfinite(sum(row)) and sum(row) > 0]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _path(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _evaluations(found: Found, names: Sequence[str]) -> str:
    head = [*names, found.objective, "seconds"]
    # Those without a finite value come last, in the order of the search.
    path = _ordered(found) + [e for e in found.path if not math.isfinite(e.value)]
    rows = [
        _row(
            [
                *(markup.number(e.weights[n], 4) for n in names),
                markup.number(e.value, 4),
                markup.number(e.seconds, 1),
            ]
        )
        for e in path[:10]
    ]
    shown = f"The best {len(rows)} of {_count(len(path), 'evaluation')}"
    return markup.table(shown, head, rows, numbers=range(len(head)))


def _layers(layers: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> str:
    rows = [
        _row([markup.number(w[m], 3) for m in names], first=markup.name(str(n))) for n, w in layers.items()
    ]
    return markup.table("The best weighting's weights in each layer", ["layer", *names], rows)


def _row(numbers: Sequence[str], *, first: str = "") -> str:
    return f"<tr>{first}{''.join(f'<td class=n>{number}</td>' for number in numbers)}</tr>"
