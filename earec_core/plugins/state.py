"""What became of a plugin, and how that follows from what it raised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NoReturn

from earec_core.errors import MissingDependencyError, PluginError, one_line
from earec_core.plugins.entries import root
from earec_core.plugins.spec import ModalitySpec


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
        kind: its kind's name, e.g. `modality`.
        value: what the entry point refers to.
        distribution: the distribution that brings it, and its version.
        state: see `State`.
        spec: what it declares; None unless it is a modality and could be read.
        cause: why it is not `ok`, one sentence; empty when it is.
        fix: what to type or change; empty when it is `ok`.
        error: the plugin's own exception, if one was raised.
        loaded: what a usable plugin brings: a modality's spec, an observer, a command, a method, ...
    """

    name: str
    kind: str
    value: str
    distribution: str
    version: str
    state: State
    spec: ModalitySpec | None = None
    cause: str = ""
    fix: str = ""
    error: BaseException | None = None
    loaded: Any = None


def refusal(plugin: Plugin) -> PluginError:
    """The error of asking for a plugin that is not `ok`, its own exception behind it."""
    error = PluginError(
        f"The {plugin.kind} {plugin.name!r} is unusable ({plugin.state}): {plugin.cause}", plugin.fix
    )
    error.__cause__ = plugin.error
    return error


def failed(plugin: Plugin, action: str, error: BaseException) -> Plugin:
    """The plugin with the state that follows from an exception of its own.

    Args:
        action: what raised it, e.g. `Importing earec_price.spec`.
    """
    state, raised = State.IMPORT_ERROR, f"{action} raised {one_line(error)}"
    cause = f"{raised}."
    fix = f"Mend it, or run: pip install --force-reinstall --no-deps {plugin.distribution}"
    own = [plugin.value, *([plugin.spec.config, plugin.spec.factory] if plugin.spec else [])]
    missing = (isinstance(error, ImportError) and error.name) or ""
    if isinstance(error, MissingDependencyError):
        state, cause, fix = State.MISSING_DEPENDENCY, error.problem, error.next_step
    elif isinstance(error, Malformed):
        state, cause = State.INVALID_SPEC, f"{action}: {error}."
        fix = f"Mend it, or run: pip uninstall {plugin.distribution}"
    elif root(missing) == "earec_core":
        # The contract moved: a newer or an older core has what the plugin imports.
        fix = f"Run: pip install --upgrade earec {plugin.distribution}"
    elif isinstance(error, ModuleNotFoundError) and missing and root(missing) not in map(root, own):
        state, cause = State.MISSING_DEPENDENCY, f"It needs {missing}, not installed here ({raised})."
        fix = install(plugin.distribution, [missing])
    return replace(plugin, state=state, cause=cause, fix=fix, error=error)


class Unusable(Exception):  # noqa: N818 - says what the plugin is
    """Carries a plugin's state out of a check; never leaves this package."""

    def __init__(self, plugin: Plugin) -> None:
        super().__init__(plugin.cause)
        self.plugin = plugin


def unusable(plugin: Plugin, state: State, cause: str, fix: str) -> NoReturn:
    """End a check.

    Raises:
        Unusable: always.
    """
    raise Unusable(replace(plugin, state=state, cause=cause, fix=fix))


def install(distribution: str, missing: list[str]) -> str:
    """The fix for modules that are not there."""
    return f"Run: pip install {distribution} (it brings what is missing), or: pip install {' '.join(missing)}"
