"""Every installed plugin, looked at in another process: one that ends it, or never returns, ends nothing else.

As a module of its own (`python -m`) it is that process: it answers one line of JSON a name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pkgutil import resolve_name
from threading import Timer
from typing import Any

from earec_core import plugins
from earec_core.plugins import Kind, Plugin, State
from earec_core.plugins.process import kept_alive, own_stdout, skip_unreadable_entry_points
from earec_core.plugins.spec import ModalitySpec

KINDS: Mapping[str, tuple[str, str]] = {
    "modality": ("earec.modalities", "earec_core.plugins:MODALITY"),
    "observer": ("earec.observers", "earec_core.plugins.observers:OBSERVER"),
    "command": ("earec.commands", "earec_core.cli:COMMAND"),
    "method": ("earec.methods", "earec_core.compose.methods:METHOD"),
    "recommender": ("earec.recommenders", "earec_core.recommend.models:RECOMMENDER"),
    "item table": ("earec.item_tables", "earec_core.recommend.tables:ITEM_TABLE"),
}
"""The group of entry points of each kind of plugin, and where its `Kind` is."""

Question = tuple[str, str]
"""The kind and the name of a plugin."""

_PATIENCE = 60.0
"""Seconds that looking at one plugin may take."""


def questions() -> list[Question]:
    """Kind and name of every installed plugin, by entry point alone."""
    return [
        (kind, name)
        for kind, (group, _) in KINDS.items()
        for name in sorted({entry.name for entry in plugins.entry_points(group)})
    ]


def every_plugin(*, examined: bool = False) -> Iterator[Plugin]:
    """Every installed plugin with its state, kind by kind; a kind that no plugin is of is not imported.

    With `EAREC_STRICT_PLUGINS` they are imported here, and what they raise is raised.

    Args:
        examined: whether a modality's configuration and factory are imported too.
    """
    left = questions()
    if os.environ.get("EAREC_STRICT_PLUGINS"):
        for question in left:
            yield from look(question, examined)
        return
    while left:
        asked = len(left)
        answers = _answers(left, examined)
        while True:
            try:
                answer = next(answers)
            except StopIteration as stopped:
                how: str = stopped.value
                break
            left = left[1:]
            yield from answer
        # One that ended a process that others had been in before is asked again, alone.
        if left and (len(left) == asked or how.startswith("did not")):
            for plugin in _unseen(left[0]):
                cause = f"Importing {plugin.value} {how}."
                fix = f"Mend it, or run: pip uninstall {plugin.distribution}"
                yield replace(plugin, state=State.IMPORT_ERROR, cause=cause, fix=fix)
            left = left[1:]


def look(question: Question, examined: bool) -> tuple[Plugin, ...]:
    """The plugins of a kind and name, imported here."""
    found = plugins.found(_kind(question), question[1])
    if not examined:
        return found
    try:
        from earec_core.modality import Modality, PluginConfig
    except Exception:  # noqa: BLE001 - a broken torch is a line of its own in `earec doctor`
        return found
    return tuple(plugins.examine(plugin, config=PluginConfig, factory=Modality) for plugin in found)


def _kind(question: Question) -> Kind:
    kind: Kind = resolve_name(KINDS[question[0]][1])
    return kind


def _unseen(question: Question) -> list[Plugin]:
    """The plugins of a kind and name, by entry point alone."""
    kind, name = question
    return [
        Plugin(name, kind, entry.value, entry.distribution, entry.version, State.OK)
        for entry in plugins.entry_points(KINDS[kind][0])
        if entry.name == name
    ]


def _answers(questions: Sequence[Question], examined: bool) -> Generator[list[Plugin], None, str]:
    """What another process says of each; how that ended is returned."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, json.dumps([questions, examined])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        while True:
            asked = time.monotonic()
            timer = Timer(_PATIENCE, _kill, [process])
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                break
            yield [_plugin(facts) for facts in json.loads(line)]
    finally:
        _kill(process)
        process.stdout.close()
        code = process.wait()
    if time.monotonic() - asked >= _PATIENCE:
        return f"did not end within {_PATIENCE:.0f} seconds"
    return f"ended the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the children that it has left."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _plugin(facts: dict[str, Any]) -> Plugin:
    spec = ModalitySpec(**facts["spec"]) if facts["spec"] else None
    return Plugin(**{**facts, "state": State(facts["state"]), "spec": spec})


def _facts(plugin: Plugin) -> dict[str, Any]:
    """A plugin without what only its own process has."""
    spec = plugin.spec and {field.name: getattr(plugin.spec, field.name) for field in fields(ModalitySpec)}
    return {**vars(plugin), "spec": spec, "error": None, "loaded": None}


def _main() -> None:
    asked, examined = json.loads(sys.argv[1])
    own_stdout()
    skip_unreadable_entry_points()
    end = os._exit
    with kept_alive():
        for question in asked:
            try:
                answer = look(question, examined)
            except Exception as error:  # noqa: BLE001 - what owns the kind does not import
                action = f"Importing {KINDS[question[0]][1]}"
                answer = tuple(plugins.failed(plugin, action, error) for plugin in _unseen(question))
            sys.stdout.write(json.dumps([_facts(plugin) for plugin in answer], default=str) + "\n")
            sys.stdout.flush()
    # Threads that a plugin started do not keep it.
    end(0)


if __name__ == "__main__":
    _main()
