"""Reports: plain data in, one self-contained HTML file out. Models are never touched here."""

from earec_core.report.content import (
    Composition,
    Curve,
    Example,
    Recommendation,
    Report,
    RougeRow,
    Says,
    StageRow,
    Suggestion,
)
from earec_core.report.explained import examples, explained, rouge_rows
from earec_core.report.render import render, write
from earec_core.report.search import write_search

__all__ = [
    "Composition",
    "Curve",
    "Example",
    "Recommendation",
    "Report",
    "RougeRow",
    "Says",
    "StageRow",
    "Suggestion",
    "examples",
    "explained",
    "render",
    "rouge_rows",
    "write",
    "write_search",
]
