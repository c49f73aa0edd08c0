"""Modalities among the plugins: what their spec must be, and the classes that it names."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal

from earec_core.errors import PluginError
from earec_core.plugins.discovery import find, names
from earec_core.plugins.entries import Entry
from earec_core.plugins.kind import Kind
from earec_core.plugins.references import attempt, imported, resolve
from earec_core.plugins.spec import API_VERSION, ModalitySpec
from earec_core.plugins.state import Plugin, State, Unusable, install, refusal, unusable

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def get(name: str) -> Plugin:
    """The usable modality plugin of that name, its spec in `spec`; no other plugin is imported.

    Raises:
        PluginError: it is not installed or not usable; the message holds its own exception and the fix.
    """
    plugin = find(MODALITY, name)
    if plugin is None:
        known = ", ".join(names(MODALITY)) or "none"
        raise PluginError(
            f"There is no modality {name!r}; installed: {known}.",
            f"Install its plugin (pip install earec-{name}) or see `earec plugins list`.",
        )
    return plugin


def part(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    """The class that a modality's spec refers to by `key`, imported.

    Raises:
        PluginError: it cannot be imported, or is no subclass of `base`.
    """
    try:
        return _part(plugin, key, base)
    except Unusable as stopped:
        raise refusal(stopped.plugin) from stopped.plugin.error


def examine(plugin: Plugin, *, config: type, factory: type) -> Plugin:
    """A plugin with the state that it has once its spec's config and factory are imported too.

    Args:
        plugin: of any kind; one that has no spec stays as it is.
        config, factory: classes that those must be subclasses of.
    """
    if plugin.state is not State.OK or plugin.spec is None:
        return plugin
    try:
        _part(plugin, "config", config)
        _part(plugin, "factory", factory)
    except Unusable as stopped:
        return stopped.plugin
    return plugin


def _part(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    reference = getattr(plugin.spec, key)
    cls = attempt(plugin, f"Importing its {key} {reference}", lambda: resolve(reference))
    if not (isinstance(cls, type) and issubclass(cls, base)):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{key} is {reference!r}, which is no {base.__name__}.",
            f"Point it at a subclass of {base.__module__}.{base.__name__}.",
        )
    return cls


def _check(entry: Entry, plugin: Plugin) -> Plugin:
    if entry.problem:
        fix = f"Run: pip install --force-reinstall --no-deps {entry.distribution}"
        unusable(plugin, State.INVALID_SPEC, entry.problem, fix)
    spec = imported(entry, plugin)
    if not isinstance(spec, ModalitySpec):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is a {type(spec).__name__}, not a ModalitySpec.",
            "Point the entry point at an earec_core.plugins.spec.ModalitySpec.",
        )
    # Before the other fields: another major may mean something else by them.
    _check_version(plugin, spec)
    problem = _field_problem(entry.name, spec)
    if problem:
        unusable(plugin, State.INVALID_SPEC, problem, f"Mend {entry.value}.")
    plugin = replace(plugin, spec=spec)
    _check_modules(plugin, spec)
    return replace(plugin, loaded=spec)


def _check_version(plugin: Plugin, spec: ModalitySpec) -> None:
    version = spec.api_version
    if not (isinstance(version, tuple) and len(version) == 2 and all(type(v) is int for v in version)):
        cause = f"api_version is {version!r}, not a pair of integers."
        unusable(plugin, State.INVALID_SPEC, cause, f"Mend {plugin.value}.")
    if version[0] != API_VERSION[0] or version[1] > API_VERSION[1]:
        wanted, have = (".".join(map(str, v)) for v in (version, API_VERSION))
        older = "earec" if version > API_VERSION else plugin.distribution
        unusable(
            replace(plugin, spec=spec),
            State.INCOMPATIBLE_API,
            f"It was written for plugin API {wanted}; this earec has {have}.",
            f"Update: pip install --upgrade {older}",
        )


def _field_problem(name: str, spec: ModalitySpec) -> str:
    for key in ("name", "summary", "config", "factory", "slot_token"):
        value = getattr(spec, key)
        if not isinstance(value, str) or not value:
            return f"{key} is {value!r}, not a text."
    if spec.name != name:
        return f"The spec is named {spec.name!r}, its entry point {name!r}."
    if type(spec.order) is not int:
        return f"order is {spec.order!r}, not an integer."
    if not isinstance(spec.requires, tuple | list) or not all(isinstance(r, str) for r in spec.requires):
        return f"requires is {spec.requires!r}, not a tuple of import names."
    for key in ("config", "factory"):
        if not _REFERENCE.fullmatch(getattr(spec, key)):
            return f"{key} is {getattr(spec, key)!r}, not of the form package.module:Class."
    return ""


def _check_modules(plugin: Plugin, spec: ModalitySpec) -> None:
    """What the spec requires is installed, and the modules of its classes are there."""
    missing = [name for name in spec.requires if not _importable(name)]
    if missing:
        cause = f"It needs {', '.join(missing)}, not installed here."
        unusable(plugin, State.MISSING_DEPENDENCY, cause, install(plugin.distribution, missing))
    for key, reference in (("config", spec.config), ("factory", spec.factory)):
        module = reference.partition(":")[0]
        if not _present(module):
            cause = f"{key} is {reference!r}, and there is no module {module}."
            unusable(plugin, State.INVALID_SPEC, cause, f"Mend {plugin.value}.")


def _importable(name: str) -> bool:
    """Whether a module is there; the parent of a dotted name is imported, and may raise what it likes."""
    if sys.modules.get(name) is not None:
        return True
    try:
        return find_spec(name) is not None
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a library that does not import is as good as missing
        return False


def _present(module: str) -> bool:
    """Whether a module is there, as far as can be seen without importing anything."""
    parent = module.rpartition(".")[0]
    if parent and sys.modules.get(parent) is None:
        return _present(parent)
    return _importable(module)


MODALITY = Kind("modality", "earec.modalities", _check)
