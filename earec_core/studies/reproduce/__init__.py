"""The paper's tables and figures measured anew on a catalog, with controls that say what a difference is due to."""

from earec_core.studies.reproduce.costs import Cost, expected
from earec_core.studies.reproduce.describe import describe
from earec_core.studies.reproduce.figures import cases, correlate
from earec_core.studies.reproduce.page import Page, correlated, described, measured, shown_cases, written
from earec_core.studies.reproduce.plan import TABLES, Row, plan
from earec_core.studies.reproduce.rows import Protocol
from earec_core.studies.reproduce.stage import Report, Result, reproduce

__all__ = [
    "TABLES",
    "Cost",
    "Page",
    "Protocol",
    "Report",
    "Result",
    "Row",
    "cases",
    "correlate",
    "correlated",
    "describe",
    "described",
    "expected",
    "measured",
    "plan",
    "reproduce",
    "shown_cases",
    "written",
]
