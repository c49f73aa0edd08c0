"""Reports: plain data in (`content`), one self-contained HTML file out. Models are never touched here."""

from earec_core.report.compared import compared
from earec_core.report.content import Report
from earec_core.report.explained import explained
from earec_core.report.render import render, write
from earec_core.report.search import write_search

__all__ = ["Report", "compared", "explained", "render", "write", "write_search"]
