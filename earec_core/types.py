"""Plain values that more than one stage hands on. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from earec_core.errors import DamagedInputError

Show = Callable[[int, int, str], None]
"""Told how far a piece of work is: done, of how many (0: not known), and what is being done."""


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE = re.compile(r"file://[^/]*(/[^?#]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a catalog.

    Attributes:
        index: its row in the catalog's item table, from 0.
        id: its identifier in the source data.
        title: its title; None where the source gives none.
        fields: every column of the item table that is not null, by name, as the catalog has it.
        relations: rows of items often bought together with it, best first.
        folder: the catalog's base folder, where the relative paths in `fields` start; None: where one works.
        outside: whether `fields` may name files that are not in that folder.
    """

    index: int
    id: str
    title: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    relations: tuple[int, ...] = ()
    folder: Path | None = None
    outside: bool = False

    def path(self, name: str) -> str | None:
        """The file that a field names, for whatever opens it.

        Args:
            name: the field; of a list, the first entry is meant, of an object its `path`.

        Returns:
            An absolute path, a relative one from the item's folder; an address (`https://...`) as it stands, but
            for one of a file (`file://...`); None if the field is missing, empty, or no text.

        Raises:
            DamagedInputError: the file is not in the item's folder, links followed, and may not be `outside`.
        """
        value = self.fields.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, Mapping):
            value = value.get("path")
        if not isinstance(value, str) or not value:
            return None
        file = _FILE.match(value)
        if self.folder is None or (_ADDRESS.match(value) and not file):
            return value
        path = os.path.normpath(self.folder / (unquote(file[1]) if file else value))
        if not self.outside and not _is_in(path, self.folder):
            raise DamagedInputError(
                f"The {name} of item {self.id} is a file outside the catalog's folder, {value}.",
                "If it may be read and shown in reports, import the catalog again with --allow-outside.",
            )
        return path

    def content(self, name: str) -> Any:
        """A picture, a sound or the like: its bytes where the field has them, else the path of `path`.

        Args:
            name: the field; of a list, the first entry is meant. An object with `bytes` and `path`, as data sets in
                Parquet have it, is its bytes, or its path where it has none.

        Returns:
            Bytes or text; None if the field is missing or empty; what is neither, as it stands.
        """
        value = self.fields.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
            value = value.get("bytes") or value.get("path")
        return self.path(name) if isinstance(value, str) else value or None


def _is_in(path: str, folder: Path) -> bool:
    """Whether a path, its links followed, leads into a folder; the machine's other files are nobody's to show."""
    base = _real(folder)
    try:
        return os.path.commonpath([base, os.path.realpath(path)]) == base
    except ValueError:  # on another drive, or no path at all
        return False


@cache
def _real(folder: Path) -> str:
    return os.path.realpath(folder)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place in a prompt where one item's embeddings in one modality go.

    Attributes:
        modality: the modality's name.
        item: the item's row in the catalog.
        keep: how many positions are read, from the start; None: all.
    """

    modality: str
    item: int
    keep: int | None = None
