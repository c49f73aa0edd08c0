"""Files that are either there in full or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageError

_CHUNK = 1 << 20


@contextmanager
def guard(doing: str, root: Path) -> Iterator[None]:
    """Say what a refusal of the file system means for somebody who wanted to do `doing`.

    Raises:
        StorageError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"The disk of the registry {root} is full: it could not {doing}; what it had is unchanged.",
                "Free some space (`earec registry gc` removes what nothing uses), then run the same again.",
            ) from error
        at = f" at {error.filename}" if error.filename else ""
        raise StorageError(
            f"The registry {root} could not {doing}: {error.strerror or error}{at}.",
            "Check that the folder can be written and its disk works, then run the same again.",
        ) from error


@contextmanager
def staging(root: Path, purpose: str) -> Iterator[Path]:
    """A folder of our own in the registry's tmp/, gone afterwards; `gc` removes it if we are killed."""
    stage = root / "tmp" / f"{purpose}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def chunks(path: Path) -> Iterator[memoryview]:
    """A file's bytes, up to 1 MiB at a time; the next step overwrites what the last one gave."""
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as reader:
        while n := reader.readinto(buffer):
            yield buffer[:n]


def copy_hashed(source: Path, target: Path, *, sync: bool = True) -> tuple[str, int]:
    """Copy a file and return the SHA-256 and the size of what was written; the copy is read-only.

    Hashing what is written, not the file at another moment, keeps the digest true if `source` changes.
    """
    return write_hashed(chunks(source), target, sync=sync)


def write_hashed(chunks: Iterable[bytes | memoryview], target: Path, *, sync: bool = True) -> tuple[str, int]:
    """Write a new, read-only file and return the SHA-256 and the size of what was written."""
    digest, size = hashlib.sha256(), 0
    with _new(target) as fd:
        for chunk in chunks:
            _write(fd, chunk)
            digest.update(chunk)
            size += len(chunk)
        if sync:
            os.fsync(fd)
        os.fchmod(fd, 0o444)
    return digest.hexdigest(), size


def write_new(target: Path, data: bytes, mode: int = 0o444) -> None:
    """Write a file that does not exist yet and wait until it is on the disk."""
    with _new(target) as fd:
        _write(fd, data)
        os.fsync(fd)
        os.fchmod(fd, mode)


def append_line(path: Path, line: bytes) -> None:
    """Append one line in one write, on a line of its own even where a killed writer left half a line."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.fstat(fd).st_size
        torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
        _write(fd, (b"\n" if torn else b"") + line + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # Windows cannot open a folder and needs no such call
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def newest(path: Path) -> float:
    """The latest modification time, in seconds, of a file or of anything in a folder."""
    times = [path.lstat().st_mtime]
    for folder, _, names in os.walk(path):
        times += [os.lstat(Path(folder, name)).st_mtime for name in [".", *names]]
    return max(times)


def size_of(path: Path) -> int:
    """How many bytes a file, or the files in a folder, have."""
    size = 0
    for file in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):  # removed by somebody while we looked
            size += 0 if file.is_dir() else file.lstat().st_size
    return size


def remove(path: Path) -> None:
    """Remove a file or a folder that others may be removing too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _new(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
