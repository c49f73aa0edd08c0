"""A measured table as rows to print and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from earec_core.metrics.statistics import Z
from earec_core.studies.reproduce.stage import METRICS, Report, Result

COLUMNS = (
    "row",
    *(metric.upper() for metric in METRICS),
    "NDCG@10 less the reference's",
    "p",
    "p (Holm)",
)
EFFECTS = ("rows", "NDCG@10", *COLUMNS[5:])
BESIDE = ("/ exact", "paper HR@10", "paper NDCG@10")
"""What of `SIZES` stands beside `COLUMNS` where both tables are one."""
SIZES = ("row", "HR@10", "NDCG@10", "||dW||", "/ exact", "error", *(f"paper {m.upper()}" for m in METRICS))


def display(report: Report) -> list[dict[str, str]]:
    """Every row's figures: mean ± standard deviation over seeds, difference ± 1.96 standard errors over users.

    A composite's row has those of `sizes` as well.
    """
    composed = {row["row"]: row for row in sizes(report)}
    return [{**composed.get(one.row.name, {}), **_figures(one)} for one in report.results]


def sizes(report: Report) -> list[dict[str, str]]:
    """Every composite: how large its change of the weights is, how far from the exact sum; the paper's figures."""
    found = []
    for one in report.results:
        if one.size is None:
            continue
        figures = {key: "-" if value is None else f"{value:.3g}" for key, value in one.size.items()}
        found.append(
            {
                "row": one.row.name,
                "HR@10": f"{one.test['hr@10']['mean']:.4f}",
                "NDCG@10": f"{one.test['ndcg@10']['mean']:.4f}",
                "||dW||": figures["composed"],
                "/ exact": figures["ratio"],
                "error": figures["relative_error"],
                **{f"paper {m.upper()}": f"{one.row.paper[m]:.4f}" for m in METRICS if m in one.row.paper},
            }
        )
    return found


def remarks(report: Report) -> list[str]:
    """What the figures can carry, a sentence each."""
    r = report.resolution
    trainings = "one training" if report.seeds == 1 else f"{report.seeds} trainings"
    found = [
        f"{report.catalog}: {report.users} users, {report.items} items; {trainings} of the recommender a row; "
        f"{'-'.join(report.adapters) or 'no modality'}, in this order, are the rows' percentages.",
        f"The standard error of HR@10 over users is {r['se']:.4f} (at {r['rate']:.4f}, {report.reference}): "
        f"two rates closer than {r['smallest']:.4f} are not told apart at 5%.",
    ]
    errors = sorted(one.versus["se"] for one in report.results if one.versus)
    if errors:
        found.append(
            f"Differences of NDCG@10 to {report.reference} are paired over users, averaged over seeds first; "
            f"the median of their standard errors is {errors[len(errors) // 2]:.4f}, so that differences "
            f"below {Z * errors[len(errors) // 2]:.4f} do not show even uncorrected. They say nothing of other "
            "seeds of the alignment."
        )
    return found


def markdown(report: Report, command: str) -> str:
    """The whole page.

    Args:
        command: what was typed.
    """
    lines = [f"    {command}", "", *remarks(report), "", *_table(COLUMNS, display(report))]
    for factor, other in (("method", "weightings"), ("weighting", "methods")):
        if rows := effects(report, factor):
            lines += ["", f"Every {factor} over all {other}:", "", *_table((factor, *EFFECTS), rows)]
    composed = sizes(report)
    if composed:
        lines += [
            "",
            "Composites: norm of the change of the weights, the same divided by the exact sum's, relative error "
            "to the exact sum, and the paper's figures (its LLM, its Office, its three modalities).",
            "",
            *_table(SIZES, composed),
        ]
    return "\n".join(lines) + "\n"


def effects(report: Report, factor: str) -> list[dict[str, str]]:
    """What the method does over all weightings, or the weighting over all methods (`factor`)."""
    return [
        {factor: one.level, "rows": str(one.rows), "NDCG@10": f"{one.ndcg:.4f}", **_versus(one.versus)}
        for one in report.effects.get(factor, ())
    ]


def _figures(one: Result) -> dict[str, str]:
    found = {"row": one.row.name}
    for metric in METRICS:
        value = one.test[metric]
        spread = "" if value["sd"] is None else f" ± {value['sd']:.4f}"
        found[metric.upper()] = f"{value['mean']:.4f}{spread}"
    return found | _versus(one.versus)


def _versus(v: Mapping[str, float] | None) -> dict[str, str]:
    if v is None:
        return {}
    told = (f"{v['difference']:+.4f} ± {Z * v['se']:.4f}", f"{v['p']:.2g}", f"{v['p_holm']:.2g}")
    return dict(zip(COLUMNS[5:], told, strict=True))


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |".replace("||dW||", "norm"), "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(row.get(c, '') for c in columns)} |" for row in rows]
