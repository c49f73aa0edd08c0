"""Discovery of plugins: each is a state, and one that fails stops nobody else.

Nothing is imported for a name; a modality that is asked for imports no other.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NoReturn

from earec_core.errors import MissingDependencyError, PluginError
from earec_core.installed import Entry, entry_points, root
from earec_core.spec import (
    API_VERSION,
    COMMAND_GROUP,
    METHOD_GROUP,
    MODALITY_GROUP,
    OBSERVER_GROUP,
    ModalitySpec,
)

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
    "observers",
    "part",
    "refusal",
    "usable",
]

_VALUE = re.compile(r"([A-Za-z_][\w.]*)\s*(?::\s*([A-Za-z_][\w.]*))?\s*(?:\[.*\])?")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


Kind = Literal["modality", "observer", "command", "method"]


class Malformed(ValueError):  # noqa: N818 - says what the reference is
    """A reference that does not lead to an object."""


class State(StrEnum):
    """What became of a plugin."""

    OK = "ok"
    DISABLED = "disabled"
    MISSING_DEPENDENCY = "missing-dependency"
    IMPORT_ERROR = "import-error"
    INCOMPATIBLE_API = "incompatible-api"
    INVALID_SPEC = "invalid-spec"
    DUPLICATE_NAME = "duplicate-name"


@dataclass(frozen=True)
class Plugin:
    """One entry point and what became of it.

    Attributes:
        name: the entry point's name.
        distribution: the distribution that brings it, and its version.
        state: see `State`.
        spec: what it declares; None unless it is a modality and could be read.
        cause: why it is not `ok`, one sentence; empty when it is.
        fix: what to type or change; empty when it is `ok`.
        error: the plugin's own exception, if one was raised.
        kind: `modality`, `observer`, `command` or `method`.
        value: what the entry point refers to.
        loaded: a usable observer's, command's or method's object; None for a modality.
    """

    name: str
    distribution: str
    version: str
    state: State
    spec: ModalitySpec | None = None
    cause: str = ""
    fix: str = ""
    error: BaseException | None = None
    kind: Kind = "modality"
    value: str = ""
    loaded: Any = None


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
    return _inspect_all(entry_points(MODALITY_GROUP), "modality", _modality)


def observers() -> tuple[Plugin, ...]:
    """Every installed observer with its state, sorted by name; a class is made without arguments."""
    return _inspect_all(entry_points(OBSERVER_GROUP), "observer", _observer)


def commands(reserved: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Every command that plugins bring, imported, with its state.

    Args:
        reserved: names that a plugin's command cannot have: the core's own.
    """
    first = command_entry_points()
    found = []
    for entry in sorted(entry_points(COMMAND_GROUP), key=_by_name):
        if entry.name not in reserved and first[entry.name] == entry:
            found.append(_inspected(entry, "command", _command))
            continue
        holder = "earec itself" if entry.name in reserved else first[entry.name].distribution
        found.append(
            replace(
                _plugin(entry, "command"),
                state=State.DUPLICATE_NAME,
                cause=f"The command {entry.name!r} is that of {holder}.",
                fix=f"Uninstall one of them: pip uninstall {entry.distribution}",
            )
        )
    return tuple(found)


def methods() -> tuple[Plugin, ...]:
    """Every method of composition that plugins bring, imported, with its state, sorted by name."""
    return _inspect_all(entry_points(METHOD_GROUP), "method", _method)


def method_names() -> list[str]:
    """Names of the methods of composition that plugins bring, by entry point alone: nothing is imported."""
    return sorted({entry.name for entry in entry_points(METHOD_GROUP)})


def everything(reserved: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Modalities, observers, commands and methods with their states; imports what they name."""
    return (*discover(), *observers(), *commands(reserved), *methods())


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
    plugin = _inspect_all(entries, "modality", _modality)[0]
    if plugin.state is not State.OK:
        raise refusal(plugin)
    return plugin


def get_command(name: str) -> Any | None:
    """The click command that a plugin brings by that name; None if none does.

    Raises:
        PluginError: it is not usable.
    """
    entry = command_entry_points().get(name)
    if entry is None:
        return None
    plugin = _inspected(entry, "command", _command)
    if plugin.state is not State.OK:
        raise refusal(plugin)
    return plugin.loaded


def get_method(name: str) -> Any | None:
    """The method of composition that a plugin brings by that name; None if none does.

    Raises:
        PluginError: it is not usable.
    """
    entries = [entry for entry in entry_points(METHOD_GROUP) if entry.name == name]
    if not entries:
        return None
    plugin = _inspect_all(entries, "method", _method)[0]
    if plugin.state is not State.OK:
        raise refusal(plugin)
    return plugin.loaded


def refusal(plugin: Plugin) -> PluginError:
    """The error of asking for a plugin that is not `ok`, its own exception behind it."""
    error = PluginError(
        f"The {plugin.kind} {plugin.name!r} is unusable ({plugin.state}): {plugin.cause}", plugin.fix
    )
    error.__cause__ = plugin.error
    return error


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


def part(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    """The class that a modality's spec refers to by `key`, imported.

    Raises:
        PluginError: it cannot be imported, or is no subclass of `base`.
    """
    try:
        return _part(plugin, key, base)
    except _Unusable as found:
        raise refusal(found.plugin) from found.plugin.error


def examine(plugin: Plugin, *, config: type, factory: type) -> Plugin:
    """A modality with the state that it has once its config and factory are imported too.

    Args:
        config, factory: classes that those must be subclasses of.
    """
    if plugin.state is not State.OK or plugin.spec is None:
        return plugin
    try:
        _part(plugin, "config", config)
        _part(plugin, "factory", factory)
    except _Unusable as found:
        return found.plugin
    return plugin


def failed(plugin: Plugin, what: str, error: BaseException) -> Plugin:
    """The plugin with the state that follows from an exception of its own.

    Args:
        what: what raised it, e.g. `Importing earec_price.spec`.
    """
    if isinstance(error, MissingDependencyError):
        return replace(
            plugin, state=State.MISSING_DEPENDENCY, cause=error.what, fix=error.next_step, error=error
        )
    if isinstance(error, Malformed):
        return replace(
            plugin,
            state=State.INVALID_SPEC,
            cause=f"{what}: {error}.",
            fix=f"Mend it, or run: pip uninstall {plugin.distribution}",
            error=error,
        )
    cause = f"{what} raised {_said(error)}."
    own = [plugin.value, *([plugin.spec.config, plugin.spec.factory] if plugin.spec else [])]
    missing = error.name if isinstance(error, ImportError) else None
    first = root(missing or "")
    if first == "earec_core":
        # The contract moved: a newer or an older core has what the plugin imports.
        fix = f"Run: pip install --upgrade earec {plugin.distribution}"
        return replace(plugin, state=State.IMPORT_ERROR, cause=cause, fix=fix, error=error)
    if isinstance(error, ModuleNotFoundError) and missing and first not in map(root, own):
        return replace(
            plugin,
            state=State.MISSING_DEPENDENCY,
            cause=f"It needs {missing}, not installed here ({what} raised {_said(error)}).",
            fix=_install(plugin.distribution, [missing]),
            error=error,
        )
    return replace(
        plugin,
        state=State.IMPORT_ERROR,
        cause=cause,
        fix=f"Mend it, or run: pip install --force-reinstall --no-deps {plugin.distribution}",
        error=error,
    )


def usable() -> dict[str, ModalitySpec]:
    """Specs of the usable modalities, in slot order."""
    specs = [plugin.spec for plugin in discover() if plugin.state is State.OK and plugin.spec]
    return {spec.name: spec for spec in sorted(specs, key=lambda s: (s.order, s.name))}


class _Unusable(Exception):  # noqa: N818 - carries a plugin's state out of a check, never leaves this module
    def __init__(self, plugin: Plugin) -> None:
        super().__init__(plugin.cause)
        self.plugin = plugin


def _plugin(entry: Entry, kind: Kind) -> Plugin:
    return Plugin(entry.name, entry.distribution, entry.version, State.OK, kind=kind, value=entry.value)


def _inspect_all(
    entries: Collection[Entry],
    kind: Kind,
    check: Callable[[Entry, Plugin], Plugin],
) -> tuple[Plugin, ...]:
    by_name: dict[str, dict[tuple[str, str], Entry]] = defaultdict(dict)
    for entry in entries:
        by_name[entry.name].setdefault((entry.distribution, entry.value), entry)
    plugins: list[Plugin] = []
    for name, group in sorted(by_name.items()):
        if len(group) == 1:
            plugins.extend(_inspected(entry, kind, check) for entry in group.values())
            continue
        brought_by = " and ".join(sorted(f"{e.distribution} ({e.value})" for e in group.values()))
        plugins.extend(
            replace(
                _plugin(entry, kind),
                state=State.DUPLICATE_NAME,
                cause=f"{name!r} is brought by {brought_by}.",
                fix=f"Uninstall all but one: pip uninstall {entry.distribution}",
            )
            for entry in sorted(group.values(), key=lambda e: (e.distribution, e.value))
        )
    return tuple(plugins)


def _inspected(
    entry: Entry,
    kind: Kind,
    check: Callable[[Entry, Plugin], Plugin],
) -> Plugin:
    plugin = _plugin(entry, kind)
    try:
        disabled = {n.strip() for n in os.environ.get("EAREC_DISABLE_PLUGINS", "").split(",")}
        if kind != "command" and entry.name in disabled:
            _unusable(
                plugin,
                State.DISABLED,
                "It is named in EAREC_DISABLE_PLUGINS.",
                f"Take {entry.name!r} out of EAREC_DISABLE_PLUGINS.",
            )
        return check(entry, plugin)
    except _Unusable as found:
        return found.plugin


def _unusable(plugin: Plugin, state: State, cause: str, fix: str) -> NoReturn:
    raise _Unusable(replace(plugin, state=state, cause=cause, fix=fix))


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
        raise _Unusable(failed(plugin, what, error)) from error


def _by_name(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.value


def _modality(entry: Entry, plugin: Plugin) -> Plugin:
    if entry.problem:
        _unusable(
            plugin,
            State.INVALID_SPEC,
            entry.problem,
            f"Run: pip install --force-reinstall --no-deps {entry.distribution}",
        )
    spec = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if not isinstance(spec, ModalitySpec):
        _unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is a {type(spec).__name__}, not a ModalitySpec.",
            "Point the entry point at an earec_core.spec.ModalitySpec.",
        )
    version = spec.api_version
    if not (isinstance(version, tuple) and len(version) == 2 and all(type(v) is int for v in version)):
        _unusable(
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
        _unusable(
            plugin,
            State.INCOMPATIBLE_API,
            f"It was written for plugin API {wanted}; this earec has {have}.",
            f"Update: pip install --upgrade {which}",
        )
    problem = _spec_problem(entry.name, spec)
    if problem:
        _unusable(replace(plugin, spec=None), State.INVALID_SPEC, problem, f"Mend {entry.value}.")
    missing = [name for name in spec.requires if not _importable(name)]
    if missing:
        _unusable(
            plugin,
            State.MISSING_DEPENDENCY,
            f"It needs {', '.join(missing)}, not installed here.",
            _install(plugin.distribution, missing),
        )
    for key, reference in (("config", spec.config), ("factory", spec.factory)):
        module = reference.partition(":")[0]
        if not _present(module):
            _unusable(
                plugin,
                State.INVALID_SPEC,
                f"{key} is {reference!r}, and there is no module {module}.",
                f"Mend {entry.value}.",
            )
    return plugin


def _observer(entry: Entry, plugin: Plugin) -> Plugin:
    # Here, so that a command that asks for a name alone does not pay for pluggy.
    from pluggy import PluginValidationError

    from earec_core.hookspecs import hooks_of

    found = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if isinstance(found, type):
        found = _attempt(plugin, f"Making {entry.value}", found)
    try:
        _attempt(plugin, f"Reading the hooks of {entry.value}", lambda: hooks_of(found, entry.name))
    except _Unusable as broken:
        if not isinstance(broken.plugin.error, PluginValidationError):
            raise
        _unusable(
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
        _unusable(
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
        _unusable(
            plugin,
            State.DUPLICATE_NAME,
            f"The method {entry.name!r} is that of earec itself.",
            f"Uninstall it: pip uninstall {entry.distribution}",
        )
    found = _attempt(plugin, f"Importing {entry.value}", lambda: load(entry.value))
    if not isinstance(found, base) or found.name != entry.name:
        what = f"the method {found.name!r}" if isinstance(found, base) else f"a {type(found).__name__}"
        _unusable(
            plugin,
            State.INVALID_SPEC,
            f"{entry.value} is {what}, not a Method named {entry.name!r}.",
            f"Point the entry point {entry.name!r} of {entry.distribution} at an earec_core.compose.Method.",
        )
    return replace(plugin, loaded=found)


def _part(plugin: Plugin, key: Literal["config", "factory"], base: type) -> Any:
    reference = getattr(plugin.spec, key)
    found = _attempt(plugin, f"Importing its {key} {reference}", lambda: load(reference))
    if not (isinstance(found, type) and issubclass(found, base)):
        _unusable(
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


def _install(distribution: str, missing: list[str]) -> str:
    return f"Run: pip install {distribution} (it brings what is missing), or: pip install {' '.join(missing)}"


def _said(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception that cannot say itself
        text = ""
    return f"{type(error).__name__}: {text}".rstrip(": ").rstrip(".")
