"""What the templates show beside the bare data: charts, colours, and values looked up or ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from earec_core.report import charts, verdicts
from earec_core.report.content import Composition, Curve, Recommendation, Report, RougeRow

_METRICS = ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
_SIDES = ("_se", "_low", "_high")
_COLOURS = 6

VARIANTS = {
    "aligned": ("aligned", "solid"),
    "shuffled": ("reading another item", "light"),
    "unaligned": ("before alignment", "grey"),
    "copied": ("its input, copied", "grey"),
}
"""Of what an `explain` run measures: how it is called on a page, and the style of its bar."""


def colours(report: Report) -> dict[str, str]:
    """One colour per modality on the whole page; all of them together are in ink."""
    names = [curve.modality for curve in report.curves]
    names += [row.source for row in report.rouge]
    names += [says.source for example in report.examples for says in example.says]
    names += report.composition.weights if report.composition else []
    order = [name for name in dict.fromkeys(names) if name != "all"]
    return {name: f"var(--m{n % _COLOURS})" for n, name in enumerate(order)} | {"all": "var(--ink)"}


def rouge(rows: Sequence[RougeRow], colours: Mapping[str, str]) -> Markup:
    """ROUGE-L of every source and variant, as bars."""
    groups = [
        charts.Group(
            f"{verdicts.source(row.source)}, {row.items} items",
            colours[row.source],
            [
                charts.Value(label, *row.variants[variant], style)
                for variant, (label, style) in VARIANTS.items()
                if variant in row.variants
            ],
        )
        for row in rows
    ]
    return charts.bars(
        "ROUGE-L by modality: aligned, reading another item, before alignment, the input word for word",
        groups,
    )


def losses(curve: Curve, colour: str) -> Markup:
    """An alignment's losses."""
    series = [
        charts.Line("training", curve.loss, colour, "faint"),
        charts.Line("training, smoothed", charts.smooth(curve.loss), colour),
        charts.Line("validation", curve.valid, colour, "marked"),
    ]
    return charts.lines(f"Loss while aligning {curve.modality}", series, y_label="loss")


def rouge_course(curve: Curve, colour: str) -> Markup:
    """ROUGE-L of an alignment's validation items."""
    highest = max((value for _, value in curve.rouge if math.isfinite(value)), default=1.0)
    return charts.lines(
        f"Validation ROUGE-L while aligning {curve.modality}",
        [charts.Line("ROUGE-L", curve.rouge, colour, "marked")],
        y_label="ROUGE-L on validation items",
        height=150,
        limits=(0.0, highest or 1.0),
    )


def cosine(composition: Composition, first: str, second: str) -> float:
    """Between two adapters' changes, NaN where it was not measured."""
    measured = composition.cosines
    return measured.get(f"{first},{second}", measured.get(f"{second},{first}", math.nan))


def metrics(rows: Sequence[Recommendation]) -> dict[str, float]:
    """Every metric that some recommender has, those of the paper first, with its best value or NaN."""
    names = {m for row in rows for m in row.metrics if m != "users" and not m.endswith(_SIDES)}
    return {
        name: max(filter(math.isfinite, (row.metrics.get(name, math.nan) for row in rows)), default=math.nan)
        for name in [*(m for m in _METRICS if m in names), *sorted(names.difference(_METRICS))]
    }


def hits(rows: Sequence[Recommendation]) -> Markup:
    """The headline metric of every recommender with its interval."""
    points = [charts.Value(row.model, *row.interval(verdicts.HEADLINE)) for row in rows]
    return charts.dots(f"{verdicts.HEADLINE.upper()} with its 95% interval, by recommender", points)


def commands(report: Report) -> list[str]:
    """What was typed to make the recommenders whose suggestions are shown."""
    shown = {model for suggestion in report.suggestions for model in suggestion.lists}
    return [row.command for row in report.recommendations if row.model in shown]
