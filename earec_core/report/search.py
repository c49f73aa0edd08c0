"""The page of a search over composition weights: its path, in a triangle where three modalities are weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

import earec_core
from earec_core.report import charts, page

if TYPE_CHECKING:
    from earec_core.search import Evaluation, Found

_SIDE, _MARGIN = 420.0, 40.0
_HEIGHT = _SIDE * math.sqrt(3) / 2


def write_search(search: Found, target: Path, *, title: str) -> Path:
    """Write the page, complete or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    return page.save(target, render_search(search, title))


def render_search(search: Found, title: str) -> str:
    """The page as HTML; whatever comes from data is escaped."""
    names = list(search.best.weights)
    losses = [(float(step["step"]), float(step["loss"])) for step in search.steps]
    return page.fill(
        "search",
        title=title,
        made_by=f"earec {earec_core.__version__}",
        search=search,
        names=names,
        # Those without a finite value come last, in the order of the search.
        ranked=_ordered(search) + [e for e in search.path if not math.isfinite(e.value)],
        by_weight=_by_weight(search, names[0]) if len(names) == 2 else "",
        triangle=_triangle(search, names) if len(names) == 3 else None,
        losses=charts.lines("Loss at each step", [charts.Line("loss", losses, "var(--m0)")], y_label="loss"),
    )


def _by_weight(search: Found, name: str) -> Markup:
    """Of two modalities: the value over the weight of the first, which says the other."""
    steps = [(step["weights"][name], step["loss"]) for step in search.steps]
    dots = [(evaluation.weights[name], evaluation.value) for evaluation in search.path]
    return charts.lines(
        f"{search.objective} by the weight of {name}",
        [
            charts.Line("steps with a gradient", steps, "var(--m1)"),
            charts.Line(search.objective, dots, "var(--m0)", "loose"),
        ],
        y_label=f"{search.objective}, each dot an evaluation"
        + ("; the line: those with a gradient, in order" if steps else ""),
        x_label=f"weight of {name}",
    )


def place(weights: Sequence[float]) -> charts.Point:
    """Barycentric to page coordinates: the first weight's corner is on top, then left, then right."""
    top, _, right = (weight / sum(weights) for weight in weights)
    return _MARGIN + _SIDE * (right + top / 2), _MARGIN + _HEIGHT * (1 - top)


def _triangle(search: Found, names: Sequence[str]) -> dict[str, Any]:
    """Of three modalities: what the triangle is drawn from, in page coordinates, the best dot last."""
    ranked = _ordered(search)[::-1]
    worst, best = (ranked[0].value, ranked[-1].value) if ranked else (math.nan, math.nan)

    def places(*weightings: Mapping[str, float]) -> list[charts.Point]:
        """Without those that hold no numbers."""
        rows = [[weights[name] for name in names] for weights in weightings]
        return [place(row) for row in rows if math.isfinite(sum(row)) and sum(row) > 0]

    dots = []
    for evaluation in ranked:
        goodness = (evaluation.value - worst) / (best - worst) if best != worst else 1.0
        weights = ", ".join(f"{name} {evaluation.weights[name]:.3f}" for name in names)
        dots += [
            (x, y, 0.1 + 0.9 * goodness, f"{weights}: {evaluation.value:.4f}")
            for x, y in places(evaluation.weights)
        ]
    tenths = [((n / 10, 1 - n / 10, 0.0), (n / 10, 0.0, 1 - n / 10)) for n in range(1, 10)]
    return {
        "width": _SIDE + 2 * _MARGIN,
        "height": _HEIGHT + 2 * _MARGIN,
        "grid": [[place(e[turn:] + e[:turn]) for e in ends] for ends in tenths for turn in range(3)],
        "outline": [place(corner) for corner in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))],
        "path": places(*(step["weights"] for step in search.steps)),
        "dots": dots,
        "rings": places(search.best.weights),
        "worst": worst,
        "best": best,
    }


def _ordered(search: Found) -> list[Evaluation]:
    """The evaluations with a finite value, best first."""
    finite = [evaluation for evaluation in search.path if math.isfinite(evaluation.value)]
    return sorted(finite, key=lambda evaluation: evaluation.value, reverse=search.objective != "loss")
