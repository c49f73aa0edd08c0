"""Files and folders that appear in full or not at all, and digests; the whole package uses these."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from earec_core.errors import EarecError, UsageError


def sha256(*paths: Path) -> str:
    """Hexadecimal SHA-256 of a file, or of the contents of several, one after another."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of a value as JSON with sorted keys: equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` for the block to write, which then takes its place.

    Readers see the old file or the new one, never a part; folders on the way are made. Several processes may
    do it at once: the last one's file stays. What is no plain file, such as a device, is written to as it is.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON in one step; see `replacing`."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False))


def copy_file(source: Path, target: Path) -> None:
    """Copy what a file or a link holds; folders on the way are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def check_new(out: Path) -> None:
    """Raises UsageError when something is at `out` that is not an empty directory."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already.", "Name a new directory, or remove this one first.")


@contextmanager
def new_directory(out: Path, content: str) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its name once the block has ended well and all is synced.

    Args:
        out: it must not exist, or be an empty directory.
        content: what is written, for the message.

    Raises:
        UsageError: something is at `out`.
        EarecError: it cannot be written; nothing is left behind.
    """
    check_new(out)
    try:
        with replacing_directory(out, replace=False) as temporary:
            yield temporary
    except OSError as error:
        raise EarecError(
            f"The {content} could not be written to {out} ({error.strerror or error}).",
            "Free some space or name another directory, then run again.",
        ) from error


@contextmanager
def replacing_directory(out: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its place once the block has ended well and all is synced.

    A directory that is there goes once the new one has its place; after a failure it is as it was, and nothing else
    is left behind.

    Args:
        replace: whether a directory that is there, and not empty, may go.

    Raises:
        UsageError: it may not, and somebody else was faster; what they made stays.
    """
    old = _beside(out)
    with _temporary_directory(out) as temporary:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if not replace:
            _place(temporary, out)
            return
        if out.exists():
            out.rename(old)
        try:
            temporary.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
        sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def make_once(out: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a new folder that then becomes `out`; nothing happens where `out` is there already.

    Where another process was faster, what it made is kept.
    """
    if out.exists():
        return
    try:
        with _temporary_directory(out) as temporary:
            make(temporary)
            temporary.replace(out)
    except OSError:
        if not out.exists():
            raise


def folder_bytes(folder: Path) -> int:
    """How many bytes a folder's files have, each once; what is gone meanwhile counts nothing."""
    seen = dict[tuple[int, int], int]()
    for path in folder.rglob("*"):
        with suppress(OSError):
            state = path.lstat()
            if S_ISREG(state.st_mode):
                seen[state.st_dev, state.st_ino] = state.st_size
    return sum(seen.values())


def sync(path: Path) -> None:
    """Make a file, or a folder's entries, survive a power cut; Windows cannot open a folder and needs no sync."""
    if os.name == "posix" or path.is_file():
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _place(directory: Path, out: Path) -> None:
    """Give a directory the name `out`, which is not there or an empty directory, in one step."""
    try:
        if os.name != "posix" and out.is_dir():
            out.rmdir()
        directory.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or not out.exists():
            raise
        raise UsageError(
            f"{out} was made by another process meanwhile, and stays.", "Use that, or name another directory."
        ) from error
    sync(out.parent)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


@contextmanager
def _temporary_directory(out: Path) -> Iterator[Path]:
    """A new directory beside `out`, removed after the block unless it was moved."""
    temporary = _beside(out)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
