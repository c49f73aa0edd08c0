"""What a plugin refers to, imported: whatever goes wrong becomes the plugin's state."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from earec_core.plugins.entries import Entry
from earec_core.plugins.state import Malformed, Plugin, Unusable, failed

_VALUE = re.compile(r"([A-Za-z_][\w.]*)\s*(?::\s*([A-Za-z_][\w.]*))?\s*(?:\[.*\])?")


def resolve(reference: str) -> Any:
    """The object that `package.module:name` refers to.

    Raises:
        Malformed: it is not of that form, or the module has no such name; and whatever importing it raises.
    """
    match = _VALUE.fullmatch(reference)
    if match is None:
        raise Malformed(f"{reference!r} is not of the form package.module:name")
    target: Any = importlib.import_module(match[1])
    for attribute in match[2].split(".") if match[2] else ():
        try:
            target = getattr(target, attribute)
        except AttributeError:
            raise Malformed(f"{reference!r} names {match[2]}, which {match[1]} has not") from None
    return target


def attempt(plugin: Plugin, action: str, function: Callable[[], Any]) -> Any:
    """What `function` gives. What it prints goes to stderr.

    Args:
        action: what it does, e.g. `Importing earec_price.spec:SPEC`.

    Raises:
        Unusable: it raised; the plugin's state says what. Ctrl-C passes; with `EAREC_STRICT_PLUGINS` all does.
    """
    try:
        with redirect_stdout(sys.stderr):
            return function()
    except (KeyboardInterrupt, Unusable):
        raise
    except BaseException as error:
        if os.environ.get("EAREC_STRICT_PLUGINS"):
            raise
        raise Unusable(failed(plugin, action, error)) from error


def imported(entry: Entry, plugin: Plugin) -> Any:
    """The object that an entry point refers to.

    Raises:
        Unusable: see `attempt`.
    """
    return attempt(plugin, f"Importing {entry.value}", lambda: resolve(entry.value))
