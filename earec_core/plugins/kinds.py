"""What a plugin of each kind must be: an entry point's object is imported and checked, field by field."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal

from earec_core.plugins.installed import Entry
from earec_core.plugins.spec import API_VERSION, ModalitySpec
from earec_core.plugins.state import Kind, Malformed, Plugin, State, Unusable, failed, install, unusable

_VALUE = re.compile(r"([A-Za-z_][\w.]*)\s*(?::\s*([A-Za-z_][\w.]*))?\s*(?:\[.*\])?")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def load(reference: str) -> Any:
    """The object that `package.module:name` refers to.

    Raises:
        Malformed: it is not of that form, or the module has no such name; and whatever importing it raises.
    """
    match = _VALUE.fullmatch(reference)
    if match is None:
        raise Malformed(f"{reference!r} is not of the form package.module:name")
    found: Any = importlib.import_module(match[1])
    for attribute in match[2].split(".") if match[2] else ():
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise Malformed(f"{reference!r} names {match[2]}, which {match[1]} has not") from None
    return found


def _attempt(plugin: Plugin, what: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; whatever it raises but Ctrl-C is the plugin's state. What it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if os.environ.get("EAREC_STRICT_PLUGINS"):
            raise
        raise Unusable(failed(plugin, what, error)) from error


def _modality(entry: Entry, plugin: Plugin) -> Plugin:
    if entry.problem:
        unusable(
            plugin,
            State.INVALID_SPEC,
            entry.problem,
            f"Run: pip install --force-reinstall --no-deps {entry.distribution}",
        )
    spec = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if not isinstance(spec, ModalitySpec):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is a {type(spec).__name__}, not a ModalitySpec.",
            "Point the entry point at an earec_core.plugins.spec.ModalitySpec.",
        )
    version = spec.api_version
    if not (isinstance(version, tuple) and len(version) == 2 and all(type(v) is int for v in version)):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"api_version is {version!r}, not a pair of integers.",
            f"Mend {entry.value}.",
        )
    plugin = replace(plugin, spec=spec)
    # Before the other fields: another major may mean something else by them.
    if version[0] != API_VERSION[0] or version[1] > API_VERSION[1]:
        wanted, have = (".".join(map(str, v)) for v in (version, API_VERSION))
        which = "earec" if version > API_VERSION else plugin.distribution
        unusable(
            plugin,
            State.INCOMPATIBLE_API,
            f"It was written for plugin API {wanted}; this earec has {have}.",
            f"Update: pip install --upgrade {which}",
        )
    problem = _spec_problem(entry.name, spec)
    if problem:
        unusable(replace(plugin, spec=None), State.INVALID_SPEC, problem, f"Mend {entry.value}.")
    missing = [name for name in spec.requires if not _importable(name)]
    if missing:
        unusable(
            plugin,
            State.MISSING_DEPENDENCY,
            f"It needs {', '.join(missing)}, not installed here.",
            install(plugin.distribution, missing),
        )
    for key, reference in (("config", spec.config), ("factory", spec.factory)):
        module = reference.partition(":")[0]
        if not _present(module):
            unusable(
                plugin,
                State.INVALID_SPEC,
                f"{key} is {reference!r}, and there is no module {module}.",
                f"Mend {entry.value}.",
            )
    return plugin


def _observer(entry: Entry, plugin: Plugin) -> Plugin:
    # Here, so that a command that asks for a name alone does not pay for pluggy.
    from pluggy import PluginValidationError

    from earec_core.plugins.hooks import hooks_of

    found = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if isinstance(found, type):
        found = _attempt(plugin, f"Making {entry.value}", found)
    try:
        _attempt(plugin, f"Reading the hooks of {entry.value}", lambda: hooks_of(found, entry.name))
    except Unusable as broken:
        if not isinstance(broken.plugin.error, PluginValidationError):
            raise
        unusable(
            replace(plugin, error=broken.plugin.error),
            State.INVALID_SPEC,
            f"{entry.value}: {' '.join(str(broken.plugin.error).split())}.",
            f"Mend it (docs/plugins.md lists the hooks), or run: pip uninstall {entry.distribution}",
        )
    return replace(plugin, loaded=found)


def _command(entry: Entry, plugin: Plugin) -> Plugin:
    import click

    found = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if not isinstance(found, click.Command):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is a {type(found).__name__}, not a click command.",
            f"Point the entry point {entry.name!r} of {entry.distribution} at a click command.",
        )
    return replace(plugin, loaded=found)


def _method(entry: Entry, plugin: Plugin) -> Plugin:
    # By name: the layers above are there whenever this is asked, and nobody pays for them who lists names.
    base, own = (load(f"earec_core.compose.methods:{name}") for name in ("Method", "METHODS"))
    if entry.name in own:
        unusable(
            plugin,
            State.DUPLICATE_NAME,
            f"The method {entry.name!r} is that of earec itself.",
            f"Uninstall it: pip uninstall {entry.distribution}",
        )
    found = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if not isinstance(found, base) or found.name != entry.name:
        what = f"the method {found.name!r}" if isinstance(found, base) else f"a {type(found).__name__}"
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is {what}, not a Method named {entry.name!r}.",
            f"Point the entry point {entry.name!r} of {entry.distribution} at an earec_core.compose.Method.",
        )
    return replace(plugin, loaded=found)


def part_of(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    """The class that a modality's spec refers to by `key`.

    Raises:
        Unusable: it cannot be imported, or is no subclass of `base`.
    """
    reference = getattr(plugin.spec, key)
    found = _attempt(plugin, f"Importing its {key} {reference}", lambda: load(reference))
    if not (isinstance(found, type) and issubclass(found, base)):
        unusable(
            plugin,
            State.INVALID_SPEC,
            f"{key} is {reference!r}, which is no {base.__name__}.",
            f"Point it at a subclass of {base.__module__}.{base.__name__}.",
        )
    return found


def _spec_problem(name: str, spec: ModalitySpec) -> str:
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


CHECKS: Mapping[Kind, Callable[[Entry, Plugin], Plugin]] = {
    "modality": _modality,
    "observer": _observer,
    "command": _command,
    "method": _method,
}
