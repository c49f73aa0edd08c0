"""What a plugin must not do to the process that runs it: write among its results, end it without a word.

For the main function of a process; each of these holds for all that it runs, libraries included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import Distribution, EntryPoints
from typing import NoReturn


def own_stdout() -> None:
    """Keep stdout for `sys.stdout` alone: what else writes to its descriptor, C code or a child, reaches stderr."""
    before = sys.stdout
    with suppress(AttributeError, OSError, ValueError):  # no stdout, no stderr, or one that is no file
        before.flush()
        kept = os.dup(before.fileno())
        os.dup2(2, before.fileno())
        sys.stdout = open(  # noqa: SIM115 - a descriptor that stays open
            kept, "w", encoding=before.encoding, errors=before.errors, closefd=False
        )


def skip_unreadable_entry_points() -> None:
    """Make a distribution whose `entry_points.txt` does not parse one without entry points.

    Otherwise `importlib.metadata.entry_points` raises for every library that asks it: pydantic, torch, numba, ...
    """
    parse = Distribution.entry_points.fget  # type: ignore[attr-defined]

    def entry_points(distribution: Distribution) -> EntryPoints:
        try:
            parsed: EntryPoints = parse(distribution)
        except Exception:  # noqa: BLE001 - whatever the parser stumbles on
            return EntryPoints(())
        return parsed

    Distribution.entry_points = property(entry_points)  # type: ignore[assignment,method-assign]


@contextmanager
def kept_alive() -> Iterator[None]:
    """Within it `os._exit` raises SystemExit, which can be caught and named; forked children end as ever."""
    end, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:
            end(status)
        raise SystemExit(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = end
