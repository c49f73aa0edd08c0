"""Tables of the paper measured anew on a catalog, with the controls that say what a difference is due to."""

from earec_core.studies.reproduce.describe import describe
from earec_core.studies.reproduce.page import BESIDE, COLUMNS, display, effects, markdown, remarks
from earec_core.studies.reproduce.plan import TABLES, Row, plan
from earec_core.studies.reproduce.stage import Report, Result, reproduce

__all__ = [
    "BESIDE",
    "COLUMNS",
    "TABLES",
    "Report",
    "Result",
    "Row",
    "describe",
    "display",
    "effects",
    "markdown",
    "plan",
    "remarks",
    "reproduce",
]
