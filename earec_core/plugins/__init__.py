"""Plugins, kind by kind: `kind` says what a kind is, `discovery` finds its plugins, `state` what became of one.

Whoever owns a kind defines it: `modalities` and `observers` here; the command line, composition and the
recommender define theirs above.
"""

from earec_core.plugins.code import code_digest
from earec_core.plugins.discovery import choose, found, installed, load, names, names_in
from earec_core.plugins.entries import Entry, entry_points
from earec_core.plugins.kind import Kind, instance_check
from earec_core.plugins.modalities import MODALITY, examine, get, part
from earec_core.plugins.references import attempt, imported
from earec_core.plugins.state import Plugin, State, failed, refusal, unusable

__all__ = [
    "MODALITY",
    "Entry",
    "Kind",
    "Plugin",
    "State",
    "attempt",
    "choose",
    "code_digest",
    "entry_points",
    "examine",
    "failed",
    "found",
    "get",
    "imported",
    "installed",
    "instance_check",
    "load",
    "names",
    "names_in",
    "part",
    "refusal",
    "unusable",
]
