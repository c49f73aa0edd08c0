"""The installed plugins by kind and name: each is a state, and one that fails stops nobody else.

Nothing is imported for a name; a modality that is asked for imports no other.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from earec_core.errors import PluginError
from earec_core.plugins import kinds
from earec_core.plugins.installed import Entry, entry_points
from earec_core.plugins.spec import COMMAND_GROUP, METHOD_GROUP, MODALITY_GROUP, OBSERVER_GROUP, ModalitySpec
from earec_core.plugins.state import Kind, Plugin, State, Unusable, plugin_of, refusal, unusable


def names() -> list[str]:
    """Names of the installed modalities, by entry point alone: nothing is imported."""
    return sorted({entry.name for entry in entry_points(MODALITY_GROUP)})


def command_entry_points() -> dict[str, Entry]:
    """Commands that plugins bring, by name, not imported; the first of a name wins."""
    found: dict[str, Entry] = {}
    for entry in sorted(entry_points(COMMAND_GROUP), key=_by_name):
        found.setdefault(entry.name, entry)
    return found


@cache
def discover() -> tuple[Plugin, ...]:
    """Every installed modality plugin with its state, sorted by name."""
    return _inspect_all(entry_points(MODALITY_GROUP), "modality")


def observer_plugins() -> tuple[Plugin, ...]:
    """Every installed observer with its state, sorted by name; a class is made without arguments."""
    return _inspect_all(entry_points(OBSERVER_GROUP), "observer")


def commands(reserved: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Every command that plugins bring, imported, with its state.

    Args:
        reserved: names that a plugin's command cannot have: the core's own.
    """
    first = command_entry_points()
    found = []
    for entry in sorted(entry_points(COMMAND_GROUP), key=_by_name):
        if entry.name not in reserved and first[entry.name] == entry:
            found.append(_inspected(entry, "command"))
            continue
        holder = "earec itself" if entry.name in reserved else first[entry.name].distribution
        found.append(
            replace(
                plugin_of(entry, "command"),
                state=State.DUPLICATE_NAME,
                cause=f"The command {entry.name!r} is that of {holder}.",
                fix=f"Uninstall one of them: pip uninstall {entry.distribution}",
            )
        )
    return tuple(found)


def methods() -> tuple[Plugin, ...]:
    """Every method of composition that plugins bring, imported, with its state, sorted by name."""
    return _inspect_all(entry_points(METHOD_GROUP), "method")


def method_names() -> list[str]:
    """Names of the methods of composition that plugins bring, by entry point alone: nothing is imported."""
    return sorted({entry.name for entry in entry_points(METHOD_GROUP)})


def everything(reserved: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Modalities, observers, commands and methods with their states; imports what they name."""
    return (*discover(), *observer_plugins(), *commands(reserved), *methods())


def get(name: str) -> Plugin:
    """The usable modality plugin of that name; no other plugin is imported.

    Raises:
        PluginError: it is not installed or not usable; the message holds its own exception and the fix.
    """
    entries = [entry for entry in entry_points(MODALITY_GROUP) if entry.name == name]
    if not entries:
        known = ", ".join(names()) or "none"
        raise PluginError(
            f"There is no modality {name!r}; installed: {known}.",
            f"Install its plugin (pip install earec-{name}) or see `earec plugins list`.",
        )
    return _ok(_inspect_all(entries, "modality")[0])


def get_command(name: str) -> Any | None:
    """The click command that a plugin brings by that name; None if none does.

    Raises:
        PluginError: it is not usable.
    """
    entry = command_entry_points().get(name)
    return None if entry is None else _ok(_inspected(entry, "command")).loaded


def get_method(name: str) -> Any | None:
    """The method of composition that a plugin brings by that name; None if none does.

    Raises:
        PluginError: it is not usable.
    """
    entries = [entry for entry in entry_points(METHOD_GROUP) if entry.name == name]
    return _ok(_inspect_all(entries, "method")[0]).loaded if entries else None


def part(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    """The class that a modality's spec refers to by `key`, imported.

    Raises:
        PluginError: it cannot be imported, or is no subclass of `base`.
    """
    try:
        return kinds.part_of(plugin, key, base)
    except Unusable as found:
        raise refusal(found.plugin) from found.plugin.error


def examine(plugin: Plugin, *, config: type, factory: type) -> Plugin:
    """A modality with the state that it has once its config and factory are imported too.

    Args:
        config, factory: classes that those must be subclasses of.
    """
    if plugin.state is not State.OK or plugin.spec is None:
        return plugin
    try:
        kinds.part_of(plugin, "config", config)
        kinds.part_of(plugin, "factory", factory)
    except Unusable as found:
        return found.plugin
    return plugin


def usable() -> dict[str, ModalitySpec]:
    """Specs of the usable modalities, in slot order."""
    specs = [plugin.spec for plugin in discover() if plugin.state is State.OK and plugin.spec]
    return {spec.name: spec for spec in sorted(specs, key=lambda s: (s.order, s.name))}


def _inspect_all(entries: Collection[Entry], kind: Kind) -> tuple[Plugin, ...]:
    by_name: dict[str, dict[tuple[str, str], Entry]] = defaultdict(dict)
    for entry in entries:
        by_name[entry.name].setdefault((entry.distribution, entry.value), entry)
    plugins: list[Plugin] = []
    for name, group in sorted(by_name.items()):
        if len(group) == 1:
            plugins.extend(_inspected(entry, kind) for entry in group.values())
            continue
        brought_by = " and ".join(sorted(f"{e.distribution} ({e.value})" for e in group.values()))
        plugins.extend(
            replace(
                plugin_of(entry, kind),
                state=State.DUPLICATE_NAME,
                cause=f"{name!r} is brought by {brought_by}.",
                fix=f"Uninstall all but one: pip uninstall {entry.distribution}",
            )
            for entry in sorted(group.values(), key=lambda e: (e.distribution, e.value))
        )
    return tuple(plugins)


def _inspected(entry: Entry, kind: Kind) -> Plugin:
    plugin = plugin_of(entry, kind)
    try:
        disabled = {n.strip() for n in os.environ.get("EAREC_DISABLE_PLUGINS", "").split(",")}
        if kind != "command" and entry.name in disabled:
            unusable(
                plugin,
                State.DISABLED,
                "It is named in EAREC_DISABLE_PLUGINS.",
                f"Take {entry.name!r} out of EAREC_DISABLE_PLUGINS.",
            )
        return kinds.CHECKS[kind](entry, plugin)
    except Unusable as found:
        return found.plugin


def _ok(plugin: Plugin) -> Plugin:
    if plugin.state is not State.OK:
        raise refusal(plugin)
    return plugin


def _by_name(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.value
