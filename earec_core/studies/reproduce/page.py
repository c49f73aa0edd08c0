"""A measured table as rows to print and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from earec_core.metrics.statistics import Z
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
        row = {**composed.get(result.row.name, {}), "row": result.row.name}
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
    sentences = [
        f"{report.catalog}: {report.users} users, {report.items} items; {trainings} of the recommender a row; "
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


def markdown(report: Report, command: str) -> str:
    """The whole page.

    Args:
        command: what was typed.
    """
    lines = [f"    {command}", "", *remarks(report), *_table(COLUMNS, display(report))]
    for factor, other in (("method", "weightings"), ("weighting", "methods")):
        if rows := effects(report, factor):
            lines += [
                "",
                f"Every {factor} over all {other}:",
                *_table((factor, "rows", "NDCG@10", *_VERSUS), rows),
            ]
    if composed := sizes(report):
        lines += [
            "",
            "Composites: norm of the change of the weights, the same divided by the exact sum's, relative error "
            "to the exact sum, and the paper's figures (its LLM, its Office, its three modalities).",
            *_table(("row", "HR@10", "NDCG@10", "norm", "/ exact", "error", *_PAPER.values()), composed),
        ]
    return "\n".join(lines) + "\n"


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
