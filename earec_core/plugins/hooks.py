"""Hooks that observers implement. Every argument is plain data; a hook names only those it wants."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pluggy
from pluggy import PluginValidationError

PROJECT = "earec"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks of version 1."""

    @hookspec
    def earec_align_start(self, run: str, config: Mapping[str, Any]) -> None:
        """An alignment begins or resumes.

        Args:
            run: path of the run's folder.
            config: the resolved configuration.
        """

    @hookspec
    def earec_align_step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """A training step or a validation ended.

        Args:
            run: path of the run's folder.
            step: optimizer steps done.
            metrics: by name: `loss`, `tokens_per_s`, `valid_loss`, `valid_rouge_l`, ...
        """

    @hookspec
    def earec_align_end(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """An alignment ended; one that failed or was killed does not.

        Args:
            run: path of the run's folder.
            step: optimizer steps done.
            metrics: the final metrics.
        """

    @hookspec
    def earec_registered(self, name: str, digest: str, manifest: Mapping[str, Any]) -> None:
        """A model was stored in the registry, by whichever command.

        Args:
            name: the name and tag that now point to it, `name:tag`.
            digest: its id, 64 hexadecimal digits.
            manifest: what it is.
        """


def hooks_of(observer: object, name: str = "observer") -> pluggy.PluginManager:
    """A pluggy manager with this observer alone.

    Raises:
        PluginValidationError: it implements no hook, one that does not exist, or one with an argument that the
            hook has not; the message names it.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(observer, name)
    callers = manager.get_hookcallers(observer) or []
    unknown = [
        caller.name
        for caller in callers
        if not caller.has_spec() and not all(one.optionalhook for one in caller.get_hookimpls())
    ]
    if unknown or not callers:
        what = f"implements {', '.join(unknown)}, which is no hook" if unknown else "has no @hookimpl method"
        known = ", ".join(hook for hook in vars(Hooks) if hook.startswith("earec_"))
        raise PluginValidationError(observer, f"{name!r} {what}; the hooks are {known}")
    return manager


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


class Observers:
    """Observers of a run, kept from each other and from the run.

    Each has a pluggy manager of its own and gets its own copy of what happened. One that raises is named in one
    note and not called again; the run goes on, unless `EAREC_STRICT_PLUGINS` is set: then it raises.

    Args:
        note: where the note goes; default: stderr.
    """

    def __init__(self, note: Callable[[str], None] = _to_stderr) -> None:
        self.note = note
        self._observers: list[tuple[str, pluggy.PluginManager]] = []

    def register(self, observer: object, name: str | None = None) -> None:
        """Add an object with `@hookimpl` methods.

        Raises:
            PluginValidationError: see `hooks_of`.
        """
        name = name or type(observer).__name__
        self._observers.append((name, hooks_of(observer, name)))

    def fire(self, hook: str, /, **arguments: Any) -> None:
        """Tell every observer what happened; `hook` is one of `Hooks`, with all its arguments."""
        for one in tuple(self._observers):
            name, manager = one
            try:
                getattr(manager.hook, hook)(**copy.deepcopy(arguments))
            except (Exception, SystemExit) as error:
                if os.environ.get("EAREC_STRICT_PLUGINS"):
                    raise
                self._observers.remove(one)
                said = " ".join(f"{type(error).__name__}: {error}".split())
                self.note(
                    f"Warning: the observer {name!r} raised in {hook} and is not called again ({said}). "
                    "Set EAREC_STRICT_PLUGINS=1 for its traceback."
                )
