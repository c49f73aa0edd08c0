"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from earec_core.errors import EarecError, UsageError


def check_new(out: Path) -> None:
    """Raises UsageError when something is at `out` that is not an empty directory."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already.", "Name a new directory, or remove this one first.")


@contextmanager
def new_directory(out: Path, what: str) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its name once the block has ended well.

    The block syncs the files that it writes (`write_file`, `copy_file`).

    Args:
        out: it must not exist, or be an empty directory.
        what: what is written, for the message.

    Raises:
        UsageError: something is at `out`.
        EarecError: it cannot be written; nothing is left behind.
    """
    check_new(out)
    temporary = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            _sync(folder)
        temporary.replace(out)
        _sync(out.parent)
    except OSError as error:
        raise EarecError(
            f"The {what} could not be written to {out} ({error.strerror or error}).",
            "Free some space or name another directory, then run again.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, synced."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy what a file or a link holds into a new file, synced; folders on the way are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def _sync(directory: Path) -> None:
    """Make a directory's entries survive a power cut; Windows cannot open a directory and needs no sync."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
