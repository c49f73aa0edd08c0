"""Files of a source: which of a folder's are data, and their bytes, read within bounds."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from earec_core.errors import DataError

LONGEST_LINE = 64 << 20
"""Bytes; no item is described by a longer line."""
MOST_COLUMNS = 10_000
MOST_DEPTH = 64
"""Lists and objects within each other."""
_GROWTH, _FREE = 100, 128 << 20
"""A compressed file may become that many times as large, and any that many bytes. Text becomes 3 to 30 times."""
_BLOCK = 16 << 20

_DATA = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".dat", ".data")
_ATOMIC = (".inter", ".item", ".user", ".kg", ".link", ".net")
_PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz")


def file_names(source: Path) -> set[str]:
    """Names of what is in a folder, without hidden files (macOS writes `._X` beside each file `X` of a copy).

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return {path.name for path in source.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise DataError(f"{source} cannot be read: {reason(error)}.", "Check the folder.") from error


def left_out(source: Path, read: Iterable[Path]) -> list[str]:
    """Names of a folder's data files, by their endings, that are not among those read."""
    names = file_names(source) - {path.name for path in read}
    return sorted(name for name in names if name.lower().endswith((*_DATA, *_ATOMIC, *_PACKED)))


def stem(name: str) -> str:
    """A table's name without its ending; empty for a file that is no csv, jsonl or parquet."""
    for ending in (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return ""


def find(source: Path, wanted: str) -> Path | None:
    """The csv, jsonl or parquet file of that name in a folder, if there is one.

    Raises:
        DataError: there are several, of different endings.
    """
    files = sorted(name for name in file_names(source) if stem(name) == wanted)
    if len(files) > 1:
        raise DataError(
            f"{source} has several tables of {wanted}: {several(files)}.", "Leave the one that is meant."
        )
    return source / files[0] if files else None


def one_file(source: Path, wanted: str) -> Path:
    """The same; DataError where there is none."""
    path = find(source, wanted)
    if path is None:
        raise DataError(
            f"{source} has no {wanted}.csv, .jsonl or .parquet.", "Add it, or name the format with --format."
        )
    return path


def check_regular(file: Path, again: str = "Give the whole folder of the data set.") -> None:
    """Raises DataError, with a next step, for what is missing, a folder, or a pipe or device: it may never end."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise DataError(f"{file} cannot be read: {reason(error)}.", again) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DataError(f"{file} is {kind}, not a file.", again)


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A text file's bytes, unzipped, from behind a UTF-8 byte order mark.

    Raises:
        DataError: no regular file, UTF-16, or damaged.
    """
    check_regular(file)
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as content:
            head = content.peek(4)[:4]
            if head[:2] in (b"\xff\xfe", b"\xfe\xff") or _alternates(head):
                raise DataError(
                    f"{file} is UTF-16, not UTF-8.", "Convert it, such as with iconv -f UTF-16 -t UTF-8."
                )
            if head[:3] == b"\xef\xbb\xbf":
                content.read(3)
            yield content  # type: ignore[misc]  # a GzipFile has what is used of a BinaryIO
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Get the file again.") from error


def raw_lines(file: Path) -> Iterator[bytes]:
    """The lines of a text file, unzipped, read within bounds.

    Raises:
        DataError: see `opened`; also a line longer than `LONGEST_LINE`, or a file made to exhaust memory.
    """
    number, size, most = 0, 0, 0
    try:
        with opened(file) as content:
            most = most_bytes(file)
            while line := content.readline(LONGEST_LINE + 1):
                number += 1
                size += len(line)
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{file} line {number} is longer than {LONGEST_LINE >> 20} MiB.",
                        "Get the file again.",
                    )
                check_size(file, size, most)
                yield line
    except DataError as error:
        if isinstance(error.__cause__, EOFError | zlib.error | OSError) and number:
            raise DataError(
                f"{file} cannot be read after line {number}: {reason(error.__cause__)}.", error.next_step
            ) from error.__cause__
        raise


def whole(file: Path) -> bytes:
    """The content of a text file, unzipped, read within bounds; raises DataError as `raw_lines` does."""
    return b"".join(_blocks(file))


def check_unzipped(file: Path) -> None:
    """Raises DataError, before anything is made of it, for a zipped file that becomes too large."""
    if file.suffix == ".gz":
        for _ in _blocks(file):
            pass


def _blocks(file: Path) -> Iterator[bytes]:
    size = 0
    with opened(file) as content:
        most = most_bytes(file)
        while block := content.read(_BLOCK):
            size += len(block)
            check_size(file, size, most)
            yield block


def decoded(content: bytes, file: Path) -> str:
    """A file's text; DataError names the line that is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} line {line} is not UTF-8.", "Convert the file to UTF-8.") from None


def check_columns_count(count: int, file: Path) -> None:
    """Raises DataError for more columns than `MOST_COLUMNS`."""
    if count > MOST_COLUMNS:
        raise DataError(
            f"{file} has {count:,} columns, more than {MOST_COLUMNS:,}.",
            "Keep those that describe an item; put a long vector into one column as a list.",
        )


def several(names: Iterable[str], most: int = 20) -> str:
    """Names for a sentence: in one line, the first of many."""
    names = list(names)
    shown = [name if name.isprintable() else ascii(name) for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown) + more


def reason(error: BaseException) -> str:
    """The first sentence of a message; Polars' go on with pages of advice."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def _alternates(head: bytes) -> bool:
    """Whether every second of four bytes is zero, as in Latin letters of UTF-16."""
    return len(head) == 4 and (any(head[::2]) != any(head[1::2]))


def most_bytes(file: Path) -> int:
    """How large a file's content may be, unzipped."""
    return max(_FREE, _GROWTH * file.stat().st_size)


def check_size(file: Path, size: int, most: int) -> None:
    """Raises DataError for a file whose content is larger than any that a catalog brings."""
    if size > most:
        raise DataError(
            f"{file} becomes more than {most >> 20:,} MiB when it is unzipped, as no catalog's file does.",
            "Give it unzipped if it is what it should be.",
        )
