"""Tabular: an item's numbers and categories, one slot position a field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from pydantic import Field

from earec_core.errors import DamagedInputError
from earec_core.modality import Encoded, Encoder, Item, MlpProjector, Modality, PluginConfig, pad


class TabularConfig(PluginConfig):
    """Which fields are read, and how wide they are written."""

    numbers: tuple[str, ...] = Field(("price", "rating"), description="Item fields that hold a number.")
    categories: tuple[str, ...] = Field(("category",), description="Item fields that hold words.")
    waves: int = Field(8, ge=1, description="Frequencies that a number's logarithm is written in.")
    buckets: int = Field(64, ge=1, description="Places that a category's words are hashed into.")


class RowEncoder(Encoder):
    """Stacks the rows that `read` made: there is nothing to learn or to load."""

    def __init__(self, d_enc: int) -> None:
        super().__init__()
        self.d_enc = d_enc

    def forward(self, batch: Sequence[Any]) -> Encoded:
        return pad([torch.from_numpy(rows) for rows in batch])  # (b t d_enc)


class TabularModality(Modality[TabularConfig]):
    """Price, rating, category, ..."""

    @property
    def cache_features(self) -> bool:
        return False  # encoding is as cheap as reading a cache

    def read(self, item: Item) -> Any | None:
        """float32 (t d_enc): a row for each field that the item has."""
        rows = [self._row(item, field) for field in self._fields if item.fields.get(field) not in (None, "")]
        return np.stack(rows) if rows else None

    def _row(self, item: Item, field: str) -> Any:
        """Which field it is, then its words in buckets, then its number as sines and cosines."""
        c, value = self.config, item.fields[field]
        which = np.eye(len(self._fields))[self._fields.index(field)]
        words, waves = np.zeros(c.buckets), np.zeros(2 * c.waves)
        if field in c.categories:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            for word in text.lower().replace(",", " ").split():
                words[crc32(word.encode()) % c.buckets] += 1
        else:
            angles = math.log1p(_number(item.id, field, value)) * 2.0 ** np.arange(c.waves)
            waves = np.concatenate([np.sin(angles), np.cos(angles)])
        return np.concatenate([which, words, waves]).astype(np.float32)

    def build_encoder(self, llm: Any) -> RowEncoder:
        return RowEncoder(len(self._fields) + self.config.buckets + 2 * self.config.waves).eval()

    def build_projector(self, d_enc: int, d_llm: int) -> MlpProjector:
        return MlpProjector(d_enc, d_llm)

    def positions(self) -> int:
        return len(self._fields)

    def describe(self, item: Item) -> str:
        return ", ".join(f"{field} {item.fields[field]}" for field in self._fields if field in item.fields)

    @classmethod
    def examples(cls, folder: Path) -> tuple[TabularConfig, Sequence[Item]]:
        """Three items for the conformance kit."""
        fields: tuple[dict[str, Any], ...] = (
            {"price": 3.5, "category": "pens"},
            {"price": "80", "rating": 4},
            {"category": "desks, oak"},
        )
        return TabularConfig(), [Item(i, f"e{i}", f"Thing {i}", values) for i, values in enumerate(fields)]

    @property
    def _fields(self) -> tuple[str, ...]:
        return self.config.numbers + self.config.categories


def _number(item: str, field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise DamagedInputError(f"{field} of item {item} is {value!r}, not a number.", "Mend the column.")
    return number
