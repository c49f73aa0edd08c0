"""Plain values that more than one stage hands on. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        fields: every column of the item table that is not null, by name. Paths are absolute.
        relations: rows of items often bought together with it, best first.
    """

    index: int
    id: str
    title: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    relations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """The place in a prompt where one item's embeddings in one modality go.

    Attributes:
        modality: the modality's name.
        item: the item's row in the catalog.
    """

    modality: str
    item: int
