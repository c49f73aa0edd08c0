"""The page of `earec compare`, from its plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earec_core.report.content import Contrast, Difference, Overlap, Report, TwoSay


def compared(comparison: Mapping[str, Any], *, catalog: str, split: str, command: str) -> Report:
    """The report of one comparison.

    Args:
        comparison: `a` and `b` with `reference`, `id` and `vectors`; `rows` and `said` as the stage gives them.
        command: what was typed.
    """
    a, b, rows = comparison["a"], comparison["b"], comparison["rows"]
    return Report(
        title=f"{a['reference']} and {b['reference']}",
        subtitle="Two models on one catalog. A difference is B less A, over the same items or users.",
        facts=[
            ("A", f"{a['reference']} ({a['id'][:12]})"),
            ("B", f"{b['reference']} ({b['id'][:12]})"),
            ("catalog", catalog),
            ("split of the texts", split),
        ],
        differences=[
            Difference(row["what"], row["a"] or "", row["b"] or "")
            for row in rows
            if row["part"] == "manifest"
        ],
        overlaps=[
            Overlap(row["part"], row["what"], row["n"], _bounds(row, "overlap"), row["chance"])
            for row in rows
            if row["overlap"] is not None
        ],
        contrasts=[
            Contrast(
                row["part"], row["what"], row["n"], row["a"], row["b"], _bounds(row, "difference"), row["p"]
            )
            for row in rows
            if row["difference"] is not None
        ],
        said=[TwoSay(**one) for one in comparison["said"]],
        compared_by=command,
    )


def _bounds(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    return row[name], row["low"], row["high"]
