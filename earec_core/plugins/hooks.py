"""Hooks that observers implement. Every argument is plain data; a hook names only those it wants."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pluggy
from pluggy import PluginValidationError

from earec_core.errors import one_line

PROJECT = "earec"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks. `stage` is the command's word: `align`, `explain`, `encode`, `search`, `compose`, `recommend`,
    `reproduce`.
    """

    @hookspec
    def earec_run_start(self, stage: str, run: str, config: Mapping[str, Any]) -> None:
        """A run begins or resumes.

        Args:
            stage: whose run it is.
            run: path of the run's folder.
            config: the resolved configuration.
        """

    @hookspec
    def earec_run_step(self, stage: str, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """A step of a run ended, e.g. a training step or a validation.

        Args:
            stage: whose run it is.
            run: path of the run's folder.
            step: steps done.
            metrics: by name; of an alignment `loss`, `tokens_per_s`, `valid_loss`, `valid_rouge_l`, ...
        """

    @hookspec
    def earec_run_end(self, stage: str, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """A run ended; one that failed or was killed does not.

        Args:
            stage: whose run it is.
            run: path of the run's folder.
            step: steps done.
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


_RENAMED = {f"earec_align_{when}": f"earec_run_{when}" for when in ("start", "step", "end")}
"""Hooks of contract 1, and what stands in their place."""


def hooks_of(observer: object, name: str = "observer") -> pluggy.PluginManager:
    """A pluggy manager with this observer alone.

    Raises:
        PluginValidationError: it implements no hook, one that does not exist (any more), or one with an argument
            that the hook has not; the message names it.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(observer, name)
    callers = manager.get_hookcallers(observer) or []
    unknown = [
        caller.name
        for caller in callers
        if not caller.has_spec() and not all(hook.optionalhook for hook in caller.get_hookimpls())
    ]
    if unknown or not callers:
        raise PluginValidationError(observer, f"{name!r} {_misfit(unknown)}")
    return manager


def _misfit(unknown: list[str]) -> str:
    """Why an observer is refused that implements these, which are no hooks, or nothing at all."""
    renamed = [hook for hook in unknown if hook in _RENAMED]
    if renamed:
        now = ", ".join(_RENAMED[hook] for hook in renamed)
        return (
            f"implements {', '.join(renamed)}, now {now}: called for every stage, "
            "with the new argument stage ('align' for an alignment)"
        )
    reason = f"implements {', '.join(unknown)}, which is no hook" if unknown else "has no @hookimpl method"
    known = ", ".join(hook for hook in vars(Hooks) if hook.startswith("earec_"))
    return f"{reason}; the hooks are {known}"


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
        for observer in tuple(self._observers):
            name, manager = observer
            try:
                getattr(manager.hook, hook)(**copy.deepcopy(arguments))
            except (Exception, SystemExit) as error:
                if os.environ.get("EAREC_STRICT_PLUGINS"):
                    raise
                self._observers.remove(observer)
                self.note(
                    f"Warning: the observer {name!r} raised in {hook} and is not called again "
                    f"({one_line(error)}). "
                    "Set EAREC_STRICT_PLUGINS=1 for its traceback."
                )
