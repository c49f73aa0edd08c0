"""Plugins: `state` says what became of one, `kinds` what each kind must be, `discovery` finds them."""

from earec_core.plugins.discovery import (
    command_entry_points,
    commands,
    discover,
    everything,
    examine,
    get,
    get_command,
    get_method,
    method_names,
    methods,
    names,
    observer_plugins,
    part,
    usable,
)
from earec_core.plugins.installed import Entry, entry_points
from earec_core.plugins.kinds import load
from earec_core.plugins.state import Malformed, Plugin, State, failed, refusal

__all__ = [
    "Entry",
    "Malformed",
    "Plugin",
    "State",
    "command_entry_points",
    "commands",
    "discover",
    "entry_points",
    "everything",
    "examine",
    "failed",
    "get",
    "get_command",
    "get_method",
    "load",
    "method_names",
    "methods",
    "names",
    "observer_plugins",
    "part",
    "refusal",
    "usable",
]
