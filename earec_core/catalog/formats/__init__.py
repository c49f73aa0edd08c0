"""Readers of the source formats: each gives items, interactions and relations under EAREC's column names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from earec_core.catalog.formats import amazon, generic, movielens, recbole
from earec_core.catalog.formats.columns import RELATION_KINDS, Part, Source, Table, check_columns
from earec_core.errors import DataError


@dataclass(frozen=True)
class Format:
    """A source format.

    Attributes:
        detect: whether a folder is of the format, by the files in it.
        read: its tables; takes the folder, and EAREC's column names to the source's (several alternatives are
            separated by `|`).
    """

    detect: Callable[[Path], bool]
    read: Callable[[Path, Mapping[str, str]], Source]


FORMATS: Mapping[str, Format] = {
    "movielens": Format(movielens.detect, movielens.read),
    "recbole": Format(recbole.detect, recbole.read),
    "generic": Format(generic.detect, generic.read),
    "amazon-2023": Format(amazon.detect_2023, amazon.read),
    "amazon-2018": Format(amazon.detect_2018, amazon.read),
}
"""By the name that `--format` takes, in the order in which a folder is tried."""


def detect(source: Path) -> str:
    """The format of a folder, by the files in it.

    Raises:
        DataError: none of the formats' files is there.
    """
    for name, format_ in FORMATS.items():
        if format_.detect(source):
            return name
    raise DataError(
        f"{source} holds no files of a known format.",
        f"Name it with --format ({', '.join(FORMATS)}); see docs/data.md.",
    )


def read(source: Path, format: str, columns: Mapping[str, str]) -> Source:  # noqa: A002 - the option's name
    """Read a source in a named format.

    Args:
        columns: EAREC's column names to the source's; several alternatives are separated by `|`.

    Raises:
        DataError: unknown format, missing or unreadable file, missing column.
    """
    if format not in FORMATS:
        raise DataError(f"There is no format {format!r}.", f"Choose one of: {', '.join(FORMATS)}.")
    return FORMATS[format].read(source, columns)


__all__ = [
    "FORMATS",
    "RELATION_KINDS",
    "Format",
    "Part",
    "Source",
    "Table",
    "check_columns",
    "detect",
    "read",
]
