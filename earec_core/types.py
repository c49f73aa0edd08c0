"""Plain values that more than one stage hands on. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Show = Callable[[int, int, str], None]
"""Told how far a piece of work is: done, of how many (0: not known), and what is being done."""


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
    """

    index: int
    id: str
    title: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    relations: tuple[int, ...] = ()
    folder: Path | None = None

    def path(self, name: str) -> str | None:
        """The file that a field names, for whatever opens it.

        Args:
            name: the field; of a list, the first entry is meant, of an object its `path`.

        Returns:
            An absolute path, a relative one from the item's folder; an address (with `://`) as it stands; None
            if the field is missing, empty, or no text.
        """
        value = self.fields.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, Mapping):
            value = value.get("path")
        if not isinstance(value, str) or not value:
            return None
        return value if "://" in value or self.folder is None else os.path.normpath(self.folder / value)

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


@dataclass(frozen=True, slots=True)
class Slot:
    """The place in a prompt where one item's embeddings in one modality go.

    Attributes:
        modality: the modality's name.
        item: the item's row in the catalog.
    """

    modality: str
    item: int
