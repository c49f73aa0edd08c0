"""Observers that come with the core, and those that plugins bring: the kind `observer`."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pluggy import PluginValidationError

from earec_core.errors import MissingDependencyError, UsageError
from earec_core.plugins import Entry, Kind, Plugin, State, attempt, imported, installed, unusable
from earec_core.plugins.hooks import Observers, hookimpl, hooks_of


def _check(entry: Entry, plugin: Plugin) -> Plugin:
    observer = imported(entry, plugin)
    if isinstance(observer, type):
        observer = attempt(plugin, f"Making {entry.value}", observer)
    try:
        hooks_of(observer, entry.name)
    except PluginValidationError as error:
        unusable(
            replace(plugin, error=error),
            State.INVALID_SPEC,
            f"{entry.value}: {' '.join(str(error).split())}.",
            f"Mend it (docs/plugins.md lists the hooks), or run: pip uninstall {entry.distribution}",
        )
    return replace(plugin, loaded=observer)


OBSERVER = Kind("observer", "earec.observers", _check)

_named: set[tuple[str, str]] = set()
"""Broken observers that this process has named already."""


def manager(
    tensorboard: Path | None = None, jsonl: Path | None = None, *, note: Callable[[str], None] | None = None
) -> Observers:
    """The observers asked for, and those that installed plugins bring.

    A plugin's observer that is not usable is named in one note a process and left out.

    Args:
        tensorboard: folder for TensorBoard event files, one subfolder a run.
        jsonl: file that JSON lines are appended to.
        note: where notes go; default: stderr.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
        UsageError: `jsonl` cannot be written to.
    """
    observers = Observers(note) if note else Observers()
    if tensorboard is not None:
        observers.register(TensorBoard(tensorboard), "tensorboard")
    if jsonl is not None:
        observers.register(JsonLines(jsonl), "jsonl")
    for plugin in installed(OBSERVER):
        if plugin.state is State.OK:
            observers.register(plugin.loaded, plugin.name)
        elif plugin.state is not State.DISABLED and (plugin.name, plugin.distribution) not in _named:
            _named.add((plugin.name, plugin.distribution))
            observers.note(
                f"Warning: the observer {plugin.name!r} of {plugin.distribution} is left out "
                f"({plugin.state}): {plugin.cause} {plugin.fix}"
            )
    return observers


class TensorBoard:
    """Writes every figure of a run's steps as a scalar.

    Args:
        folder: where event files go, one subfolder a run.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard is not installed.", "Run: pip install 'earec[tensorboard]'"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writers: dict[str, Any] = {}

    @hookimpl
    def earec_run_step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        if run not in self._writers:
            # Events after the step where a resumed run starts again are dropped by TensorBoard.
            self._writers[run] = self._open(str(self._folder / Path(run).name), purge_step=step)
        for name, value in metrics.items():
            self._writers[run].add_scalar(name, value, step)

    @hookimpl
    def earec_run_end(self, run: str) -> None:
        if run in self._writers:
            self._writers.pop(run).close()


class JsonLines:
    """Appends one JSON object a line: `event`, `time` (UTC, ISO 8601) and the hook's arguments.

    A line is written whole in one call before the run goes on, so that a killed run leaves whole lines. A figure
    that is not a number is null.

    Args:
        file: where to; made if it is not there, its folder too.

    Raises:
        UsageError: it cannot be written to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a+b", buffering=0) as out:
                # A line that a full disk cut short must not swallow the next one.
                if out.tell() and (out.seek(-1, 2), out.read(1))[1] != b"\n":
                    out.write(b"\n")
        except OSError as error:
            raise UsageError(
                f"Events cannot be written to {file}: {error.strerror}.", "Give --jsonl another file."
            ) from error

    @hookimpl
    def earec_run_start(self, stage: str, run: str, config: Mapping[str, Any]) -> None:
        self._append("start", stage=stage, run=run, config=config)

    @hookimpl
    def earec_run_step(self, stage: str, run: str, step: int, metrics: Mapping[str, float]) -> None:
        self._append("step", stage=stage, run=run, step=step, metrics=metrics)

    @hookimpl
    def earec_run_end(self, stage: str, run: str, step: int, metrics: Mapping[str, float]) -> None:
        self._append("end", stage=stage, run=run, step=step, metrics=metrics)

    @hookimpl
    def earec_registered(self, name: str, digest: str, manifest: Mapping[str, Any]) -> None:
        self._append("registered", name=name, digest=digest, manifest=manifest)

    def _append(self, event: str, **arguments: Any) -> None:
        record = {"event": event, "time": datetime.now(UTC).isoformat(), **_plain(arguments)}
        line = (json.dumps(record, ensure_ascii=False, default=str, allow_nan=False) + "\n").encode()
        with self._file.open("ab", buffering=0) as out:
            if out.write(line) != len(line):
                raise OSError(errno.ENOSPC, f"the disk is full at {self._file}")


def _plain(value: Any) -> Any:
    """Values as JSON has them: it knows no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
