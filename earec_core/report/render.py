"""From `Report` to one HTML page."""

from __future__ import annotations

from pathlib import Path

from earec_core.report import figures, page, verdicts
from earec_core.report.content import Report

SECTIONS = {
    "examples": "What it says",
    "rouge": "How close",
    "curves": "How it learned",
    "composition": "Composition",
    "recommendations": "Recommendations",
    "suggestions": "For a user",
    "overlaps": "What they share",
    "contrasts": "Who does better",
    "said": "What they say",
    "differences": "How they were made",
    "stages": "Commands",
    "notes": "Notes",
}
"""A part of `Report`, which `templates/sections/` has a template for, and its name among the page's links."""


def write(report: Report, target: Path, data: Path | None = None) -> Path:
    """Render to `target`, and save the report's data as JSON to `data`; each complete or not at all.

    Raises:
        UsageError: one cannot be written.
    """
    text = render(report)
    if data is not None:
        page.save(data, report.to_json())
    return page.save(target, text)


def render(report: Report) -> str:
    """The report as an HTML page; whatever comes from data is escaped."""
    sentences = (
        verdicts.gains(report.rouge),
        verdicts.dependence(report.rouge),
        verdicts.resolved(report.recommendations),
        *map(verdicts.shares, report.overlaps),
        *map(verdicts.better, report.contrasts),
    )
    return page.fill(
        "report",
        title=report.title,
        subtitle=report.subtitle,
        made_by=report.generated_with,
        report=report,
        figures=figures,
        verdicts=verdicts,
        colours=figures.colours(report),
        short=[sentence for sentence in sentences if sentence],
        sections={key: name for key, name in SECTIONS.items() if getattr(report, key)},
    )
