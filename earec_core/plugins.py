"""Discovery of modality plugins: each is a state, and one that fails stops nobody else."""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from earec_core.errors import PluginError
from earec_core.spec import API_VERSION, COMMAND_GROUP, MODALITY_GROUP, ModalitySpec


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
    """One entry point of `earec.modalities` and what became of it.

    Attributes:
        name: the entry point's name.
        distribution: the distribution that brings it, and its version.
        state: see `State`.
        spec: what it declares; None unless it could be read.
        cause: why it is not `ok`, one sentence; empty when it is.
        fix: what to type or change; empty when it is `ok`.
        error: the plugin's own exception, if one was raised.
    """

    name: str
    distribution: str
    version: str
    state: State
    spec: ModalitySpec | None = None
    cause: str = ""
    fix: str = ""
    error: BaseException | None = None


def names() -> list[str]:
    """Names of the installed modalities, by entry point alone: nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=MODALITY_GROUP)})


def command_entry_points() -> dict[str, EntryPoint]:
    """Commands that plugins bring, by name, not imported; the first of a name wins."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=COMMAND_GROUP), key=lambda e: (e.name, e.value)):
        found.setdefault(entry.name, entry)
    return found


@cache
def discover() -> tuple[Plugin, ...]:
    """Every installed modality plugin with its state, sorted by name."""
    by_name: dict[str, dict[tuple[str, str], EntryPoint]] = defaultdict(dict)
    for entry in entry_points(group=MODALITY_GROUP):
        # One distribution seen through two paths is one plugin.
        by_name[entry.name].setdefault((_dist(entry)[0], entry.value), entry)
    plugins: list[Plugin] = []
    for name in sorted(by_name):
        entries = list(by_name[name].values())
        if len(entries) > 1:
            brought_by = " and ".join(sorted(_dist(e)[0] for e in entries))
            plugins.extend(
                Plugin(
                    name,
                    *_dist(entry),
                    State.DUPLICATE_NAME,
                    cause=f"{name!r} is brought by {brought_by}.",
                    fix=f"Uninstall all but one: pip uninstall {_dist(entry)[0]}",
                )
                for entry in entries
            )
        else:
            plugins.append(_inspect(entries[0]))
    return tuple(plugins)


def get(name: str) -> Plugin:
    """The usable plugin of that name.

    Raises:
        PluginError: it is not installed or not usable; the message holds its own exception and the fix.
    """
    found = [plugin for plugin in discover() if plugin.name == name]
    if not found:
        known = ", ".join(names()) or "none"
        raise PluginError(
            f"There is no modality {name!r}; installed: {known}.",
            f"Install its plugin (pip install earec-{name}) or see `earec plugins list`.",
        )
    plugin = found[0]
    if plugin.state is not State.OK:
        raise PluginError(
            f"The modality {name!r} is unusable ({plugin.state}): {plugin.cause}", plugin.fix
        ) from (plugin.error)
    return plugin


def load(reference: str) -> Any:
    """The object that `package.module:name` refers to."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def usable() -> dict[str, ModalitySpec]:
    """Specs of the usable modalities, in slot order."""
    specs = [plugin.spec for plugin in discover() if plugin.state is State.OK and plugin.spec]
    return {spec.name: spec for spec in sorted(specs, key=lambda s: (s.order, s.name))}


def _dist(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "unknown")


def _inspect(entry: EntryPoint) -> Plugin:
    dist, version = _dist(entry)

    def state(
        state: State,
        cause: str,
        fix: str,
        spec: ModalitySpec | None = None,
        error: BaseException | None = None,
    ) -> Plugin:
        return Plugin(entry.name, dist, version, state, spec, cause, fix, error)

    disabled = {n.strip() for n in os.environ.get("EAREC_DISABLE_PLUGINS", "").split(",")}
    if entry.name in disabled:
        return state(
            State.DISABLED,
            "It is named in EAREC_DISABLE_PLUGINS.",
            f"Take {entry.name!r} out of EAREC_DISABLE_PLUGINS.",
        )
    try:
        spec = entry.load()
    except (Exception, SystemExit) as error:
        if os.environ.get("EAREC_STRICT_PLUGINS"):
            raise
        return state(
            State.IMPORT_ERROR,
            f"Importing {entry.value} raised {type(error).__name__}: {error}.",
            f"Mend or reinstall it: pip install --force-reinstall {dist}",
            error=error,
        )
    if not isinstance(spec, ModalitySpec):
        return state(
            State.INVALID_SPEC,
            f"{entry.value} is a {type(spec).__name__}, not a ModalitySpec.",
            "Point the entry point at an earec_core.spec.ModalitySpec.",
        )
    problem = _spec_problem(entry.name, spec)
    if problem:
        return state(State.INVALID_SPEC, problem, f"Mend {entry.value}.", spec)
    if spec.api_version[0] != API_VERSION[0] or spec.api_version[1] > API_VERSION[1]:
        wanted, have = (".".join(map(str, v)) for v in (spec.api_version, API_VERSION))
        which = "earec" if spec.api_version > API_VERSION else dist
        return state(
            State.INCOMPATIBLE_API,
            f"It was written for plugin API {wanted}; this earec has {have}.",
            f"Update: pip install --upgrade {which}",
            spec,
        )
    missing = [name for name in spec.requires if not _importable(name)]
    if missing:
        return state(
            State.MISSING_DEPENDENCY,
            f"It needs {', '.join(missing)}, not installed here.",
            f"pip install {dist} again, or install {' '.join(missing)} by hand.",
            spec,
        )
    return Plugin(entry.name, dist, version, State.OK, spec)


def _spec_problem(name: str, spec: ModalitySpec) -> str:
    if spec.name != name:
        return f"The spec is named {spec.name!r}, its entry point {name!r}."
    version = spec.api_version
    if not (isinstance(version, tuple) and len(version) == 2 and all(isinstance(v, int) for v in version)):
        return f"api_version is {version!r}, not a pair of integers."
    for key in ("config", "factory"):
        if getattr(spec, key).count(":") != 1:
            return f"{key} is {getattr(spec, key)!r}, not of the form package.module:Class."
    return ""


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
