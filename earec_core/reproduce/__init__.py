"""Tables of the paper measured anew on a catalog, with the controls that say what a difference is due to."""

from earec_core.reproduce.page import BESIDE, COLUMNS, display, effects, markdown, remarks
from earec_core.reproduce.plan import Row, plan
from earec_core.reproduce.stage import Report, Result, reproduce

__all__ = [
    "BESIDE",
    "COLUMNS",
    "Report",
    "Result",
    "Row",
    "display",
    "effects",
    "markdown",
    "plan",
    "remarks",
    "reproduce",
]
