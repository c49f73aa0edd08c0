"""The installed plugins of a kind: each has a state, and one that fails stops nobody else.

Nothing is imported for a name; a plugin that is asked for imports no other.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from earec_core.errors import UsageError
from earec_core.plugins.entries import Entry, entry_points
from earec_core.plugins.kind import Kind
from earec_core.plugins.references import attempt
from earec_core.plugins.state import Plugin, State, Unusable, refusal, unusable

T = TypeVar("T")


def names(kind: Kind) -> list[str]:
    """Names of the installed plugins of a kind, by entry point alone: nothing is imported."""
    return sorted({entry.name for entry in entry_points(kind.group)})


def installed(kind: Kind) -> tuple[Plugin, ...]:
    """Every installed plugin of a kind, imported, with its state, sorted by name."""
    return _checked(kind, entry_points(kind.group))


def found(kind: Kind, name: str) -> tuple[Plugin, ...]:
    """The installed plugins of a kind that have a name, imported, with their states; no other is imported."""
    return _checked(kind, [entry for entry in entry_points(kind.group) if entry.name == name])


def find(kind: Kind, name: str) -> Plugin | None:
    """The usable plugin of that kind and name; no other plugin is imported. None if there is none.

    Raises:
        PluginError: it is not usable; the message holds its own exception and the fix.
    """
    plugins = found(kind, name)
    if not plugins:
        return None
    if plugins[0].state is not State.OK:
        raise refusal(plugins[0])
    return plugins[0]


def load(kind: Kind, name: str) -> Any | None:
    """The object that a usable plugin brings, e.g. a `Method`; None if there is no plugin of that name.

    Raises:
        PluginError: see `find`.
    """
    plugin = find(kind, name)
    return plugin.loaded if plugin else None


def names_in(table: Mapping[str, Any], kind: Kind) -> list[str]:
    """The names of a table's rows, then those of the plugins that add to it; nothing is imported."""
    return [*table, *sorted(set(names(kind)) - set(table))]


def choose(table: Mapping[str, T], kind: Kind, name: str, noun: str) -> T:
    """The row of that name in a table that plugins of a kind add to; a plugin is imported only for its own.

    Args:
        table: the core's own rows.
        kind: whose plugins bring further ones.
        name: which row.
        noun: what a row is called in the error, e.g. `recommender`.

    Raises:
        UsageError: there is none.
        PluginError: a plugin brings it and is not usable.
    """
    row: T | None = table.get(name) or load(kind, name)
    if row is None:
        raise UsageError(
            f"There is no {noun} {name!r}.", f"Choose one of {', '.join(names_in(table, kind))}."
        )
    return row


def _checked(kind: Kind, entries: Collection[Entry]) -> tuple[Plugin, ...]:
    namesakes: dict[str, dict[tuple[str, str], Entry]] = defaultdict(dict)
    for entry in entries:
        namesakes[entry.name].setdefault((entry.distribution, entry.value), entry)
    return tuple(
        _check(kind, entry, [other for _, other in sorted(same.items())])
        for _, same in sorted(namesakes.items())
        for _, entry in sorted(same.items())
    )


def _check(kind: Kind, entry: Entry, namesakes: list[Entry]) -> Plugin:
    """The plugin of one entry point; `namesakes` are all of its kind and name."""
    plugin = Plugin(entry.name, kind.name, entry.value, entry.distribution, entry.version, State.OK)
    try:
        _check_name(kind, entry, plugin, namesakes)
        checked: Plugin = attempt(plugin, f"Checking {entry.value}", lambda: kind.check(entry, plugin))
    except Unusable as stopped:
        return stopped.plugin
    return checked


def _check_name(kind: Kind, entry: Entry, plugin: Plugin, namesakes: list[Entry]) -> None:
    if entry.name in {name.strip() for name in os.environ.get("EAREC_DISABLE_PLUGINS", "").split(",")}:
        unusable(
            plugin,
            State.DISABLED,
            "It is named in EAREC_DISABLE_PLUGINS.",
            f"Take {entry.name!r} out of EAREC_DISABLE_PLUGINS.",
        )
    if entry.name in kind.reserved():
        unusable(
            plugin,
            State.DUPLICATE_NAME,
            f"The {kind.name} {entry.name!r} is that of earec itself.",
            f"Uninstall it: pip uninstall {entry.distribution}",
        )
    if len(namesakes) > 1:
        brought_by = " and ".join(f"{other.distribution} ({other.value})" for other in namesakes)
        unusable(
            plugin,
            State.DUPLICATE_NAME,
            f"{entry.name!r} is brought by {brought_by}.",
            f"Uninstall all but one: pip uninstall {entry.distribution}",
        )
