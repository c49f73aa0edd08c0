"""A measured table as rows to print, and as a file: Markdown, HTML or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from earec_core.catalog import Catalog
from earec_core.metrics.statistics import Z
from earec_core.report.charts import Line, Value, dots, lines
from earec_core.report.measured import Table, render_measured
from earec_core.studies.reproduce.describe import describe
from earec_core.studies.reproduce.figures import Case, Correlation, Point
from earec_core.studies.reproduce.stage import METRICS, Report

_VERSUS = ("NDCG@10 less the reference's", "change", "p", "p (Holm)")
_PAPER = {metric: f"paper {metric.upper()}" for metric in METRICS}
COLUMNS = ("row", *map(str.upper, METRICS), *_VERSUS)
BESIDE = ("/ exact", "paper HR@10", "paper NDCG@10")
"""The columns of `sizes` that stand beside `COLUMNS` where both tables are one."""


def display(report: Report) -> list[dict[str, str]]:
    """Every row's figures: mean ± standard deviation over seeds, difference ± 1.96 standard errors over users.

    A composite's row has those of `sizes` as well.
    """
    composed = {row["row"]: row for row in sizes(report)}
    rows = []
    for result in report.results:
        paper = {_PAPER[metric]: f"{value:.4f}" for metric, value in result.row.paper.items()}
        row = {**composed.get(result.row.name, {}), **paper, "row": result.row.name}
        for metric, figures in result.test.items():
            spread = "" if figures["sd"] is None else f" ± {figures['sd']:.4f}"
            row[metric.upper()] = f"{figures['mean']:.4f}{spread}"
        rows.append(row | _versus(result.versus, result.test["ndcg@10"]["mean"]))
    return rows


def sizes(report: Report) -> list[dict[str, str]]:
    """Every composite: the norm of its change of the weights, its error to the exact sum; the paper's figures."""
    names = {"composed": "norm", "ratio": "/ exact", "relative_error": "error"}
    return [
        {
            "row": result.row.name,
            "HR@10": f"{result.test['hr@10']['mean']:.4f}",
            "NDCG@10": f"{result.test['ndcg@10']['mean']:.4f}",
            **{
                column: "-" if (value := result.size[key]) is None else f"{value:.3g}"
                for key, column in names.items()
            },
            **{_PAPER[metric]: f"{value:.4f}" for metric, value in result.row.paper.items()},
        }
        for result in report.results
        if result.size is not None
    ]


def effects(report: Report, factor: str) -> list[dict[str, str]]:
    """What the method does over all weightings, or the weighting over all methods (`factor`)."""
    return [
        {factor: effect.level, "rows": str(effect.rows), "NDCG@10": f"{effect.ndcg:.4f}"}
        | _versus(effect.versus, effect.ndcg)
        for effect in report.effects.get(factor, ())
    ]


def remarks(report: Report) -> list[str]:
    """What the figures can carry, a sentence each."""
    resolution = report.resolution
    trainings = "one training" if report.seeds == 1 else f"{report.seeds} trainings"
    tuned = "as given" if report.trials == 1 else f"the best of {report.trials} trials on validation"
    rivals = "all items but those of the user's history" if report.exclude_seen else "all items"
    sentences = [
        f"{report.catalog}: {report.users} users, {report.items} items; {trainings} of the recommender a row, "
        f"settings {tuned}; targets ranked among {rivals}, of equal scores the first in the catalog first; "
        f"{'-'.join(report.adapters) or 'no modality'}, in this order, are the rows' percentages.",
        f"The standard error of HR@10 over users is {resolution['se']:.4f} (at {resolution['rate']:.4f}, "
        f"{report.reference}): two rates closer than {resolution['smallest']:.4f} are not told apart at 5%.",
    ]
    errors = sorted(result.versus["se"] for result in report.results if result.versus)
    if errors:
        median = errors[len(errors) // 2]
        sentences.append(
            f"Differences of NDCG@10 to {report.reference} are paired over users, averaged over seeds first; "
            f"the median of their standard errors is {median:.4f}, so that differences below {Z * median:.4f} "
            "do not show even uncorrected. They say nothing of other seeds of the alignment."
        )
    return sentences


def verdicts(report: Report) -> list[dict[str, str]]:
    """Per metric the best of ours beside the best baseline, without ids and with."""
    return [
        {
            "ids": "with ids" if verdict.ids else "without ids",
            "metric": verdict.metric.upper(),
            "ours": f"{verdict.ours} {verdict.value:.4f}{verdict.stars}",
            "best baseline": verdict.baseline,
            "improvement": f"{verdict.improvement:+.2%}",
            "difference": f"{verdict.difference:+.4f} [{verdict.low:.4f}, {verdict.high:.4f}]",
            "p (t)": f"{verdict.p_t:.2g}",
            "p (Wilcoxon)": f"{verdict.p_wilcoxon:.2g}",
            "p (Holm)": f"{verdict.p:.2g}",
        }
        for verdict in report.verdicts
    ]


@dataclass(frozen=True)
class Page:
    """A measured table or figure, ready to be shown.

    Attributes:
        title: what it is of.
        facts: everything, as JSON has it.
        remarks: what the figures can carry, a sentence each.
        tables: the first is what a CSV file holds.
        charts: SVG, for HTML.
    """

    title: str
    facts: Any
    remarks: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Markup] = ()


def written(page: Page, command: str, suffix: str) -> str:
    """A page as a file: of CSV (`.csv`) the first table alone, else HTML (`.html`) or Markdown.

    Args:
        command: what was typed.
    """
    if suffix == ".csv":
        return _csv(page.tables[0])
    if suffix == ".html":
        return render_measured(page.title, command, page.remarks, page.tables, page.charts)
    lines = [f"    {command}", "", *page.remarks]
    for table in page.tables:
        lines += ["", f"{table.title}. {table.caption}".strip(), *_table(table.columns, table.rows)]
    return "\n".join(lines) + "\n"


def measured(report: Report) -> Page:
    """Tables 2 to 4."""
    charts = [dots(metric.upper(), _dots(report, metric)) for metric in ("hr@10", "ndcg@10")]
    title = f"Table {report.table} on {report.catalog}"
    return Page(title, report.as_json(), remarks(report), _tables(report), charts)


def described(catalogs: Sequence[Catalog]) -> Page:
    """Table 1."""
    rows = describe(catalogs)
    counted = ("users", "items", "interactions")
    shown = [
        {
            "dataset": row["dataset"],
            **{name: f"{row[name]:,}" for name in counted},
            "length": f"{row['length']:.2f}",
            "density": f"{row['density']:.3%}",
            "fields": ", ".join(f"{name} {count:,}" for name, count in row["fields"].items()),
        }
        for row in rows
    ]
    columns = ("dataset", *counted, "length", "density", "fields")
    caption = "Length: interactions a user on average. Fields: how many items have each."
    return Page("Table 1", rows, [], [Table("What the catalogs hold", caption, columns, shown)])


def shown_cases(catalog: str, cases: Sequence[Case]) -> Page:
    """Figure 4."""
    rows = [{**asdict(case), "rouge_l": f"{case.rouge_l:.3f}"} for case in cases]
    columns = ("item", "anchor", "modality", "variant", "text", "rouge_l")
    table = Table("What is said", "", columns, rows)
    facts = [asdict(case) for case in cases]
    return Page(f"Figure 4 on {catalog}: what the LLM says of items", facts, [], [table])


def correlated(catalog: str, correlation: Correlation) -> Page:
    """Figure 5."""
    points = correlation.points
    rows = [
        {
            "modality": point.modality,
            "variant": point.variant,
            "ROUGE-L": f"{point.rouge_l:.4f}",
            "items": str(point.items),
            **{metric.upper(): f"{value:.4f}" for metric, value in point.test.items()},
        }
        for point in points
    ]
    sentences = [
        f"Pearson's r of ROUGE-L with {metric.upper()}: {r['r']:.2f} [{r['low']:.2f}, {r['high']:.2f}] "
        f"(p {r['p']:.2g}, {len(points)} points)."
        for metric, r in correlation.pearson.items()
    ]
    drawn = [
        lines(
            f"{metric.upper()} by ROUGE-L",
            [
                Line(variant, _along(points, variant, metric), colour, "loose")
                for variant, colour in (("unaligned", "var(--m1)"), ("aligned", "var(--m0)"))
            ],
            y_label=metric.upper(),
            x_label="ROUGE-L",
        )
        for metric in points[0].test
    ]
    table = Table("Each modality alone", "Un-aligned and aligned.", list(rows[0]), rows)
    title = f"Figure 5 on {catalog}: saying it well and recommending well"
    return Page(title, correlation.as_json(), sentences, [table], drawn)


def _along(points: Sequence[Point], variant: str, metric: str) -> list[tuple[float, float]]:
    return sorted((point.rouge_l, point.test[metric]) for point in points if point.variant == variant)


def _tables(report: Report) -> list[Table]:
    columns = [*COLUMNS, *(BESIDE if report.table == 4 else BESIDE[1:])]
    tables = [
        Table(
            "Every row",
            "Mean ± standard deviation over the recommender's seeds; difference ± 1.96 standard errors over users.",
            columns,
            display(report),
        )
    ]
    if rows := verdicts(report):
        caption = "Rows chosen by NDCG@10 on validation; * p <= 0.05, ** p <= 0.01, by Holm over this table."
        tables.append(Table("The best of ours beside the best baseline", caption, list(rows[0]), rows))
    for factor, other in (("method", "weightings"), ("weighting", "methods")):
        if rows := effects(report, factor):
            title = f"Every {factor} over all {other}"
            tables.append(Table(title, "", (factor, "rows", "NDCG@10", *_VERSUS), rows))
    if rows := sizes(report):
        caption = (
            "Norm of the change of the weights, the same divided by the exact sum's, relative error to the exact "
            "sum, and the paper's figures (its LLM, its Office, its three modalities)."
        )
        columns = ["row", "HR@10", "NDCG@10", "norm", "/ exact", "error", *_PAPER.values()]
        tables.append(Table("Composites", caption, columns, rows))
    return tables


def _dots(report: Report, metric: str) -> list[Value]:
    figures = [(result.row.name, result.test[metric]) for result in report.results]
    return [Value(name, f["mean"], f["mean"] - Z * f["se"], f["mean"] + Z * f["se"]) for name, f in figures]


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return text.getvalue()


def _versus(comparison: Mapping[str, float] | None, mean: float) -> dict[str, str]:
    """How far a mean is from the reference's, which it would be without the difference."""
    if comparison is None:
        return {}
    difference = comparison["difference"]
    reference = mean - difference
    cells = (
        f"{difference:+.4f} ± {Z * comparison['se']:.4f}",
        f"{difference / reference:+.1%}" if reference > 0 else "",
        f"{comparison['p']:.2g}",
        f"{comparison['p_holm']:.2g}",
    )
    return dict(zip(_VERSUS, cells, strict=True))


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return ["", head, "|---" * len(columns) + "|", *body]
