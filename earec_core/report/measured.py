"""The page of a measured table or figure: what it can tell, charts, the tables themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

import earec_core
from earec_core.report import page


@dataclass(frozen=True)
class Table:
    """A table of cells that are text.

    Attributes:
        title, caption: its heading, and what it holds.
        columns: the first names the row.
        rows: cells by column; what is missing is empty.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]


def render_measured(
    title: str,
    command: str,
    remarks: Sequence[str],
    tables: Sequence[Table],
    charts: Sequence[Markup],
) -> str:
    """The page as HTML; whatever comes from data is escaped.

    Args:
        command: what was typed.
        charts: of `earec_core.report.charts`.
    """
    return page.fill(
        "measured",
        title=title,
        subtitle="",
        made_by=f"earec {earec_core.__version__}",
        command=command,
        remarks=remarks,
        tables=tables,
        charts=charts,
    )
