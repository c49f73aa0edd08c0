"""Audio: an item's sound, or its precomputed features, through a frozen encoder and a trained MLP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from pydantic import Field, model_validator

from earec_audio import sound
from earec_audio.encoders import SPEECH_EMBEDDING, Source, Speech, Tower
from earec_core.errors import DamagedInputError, UsageError
from earec_core.modality import Encoder, Item, LanguageModel, MlpProjector, Modality, PluginConfig, Projector
from earec_core.modality.tables import Table, VectorEncoder, read_table


class AudioConfig(PluginConfig):
    """Which sound or which table, which encoder, how many positions."""

    field: str = Field("audio", min_length=1, description="Item field with a sound file's path or bytes.")
    encoder: str = Field(
        SPEECH_EMBEDDING,
        min_length=1,
        description=f"{SPEECH_EMBEDDING}, or a directory or hub id of a transformers audio encoder.",
    )
    revision: str | None = Field(
        None, description="Hub commit, or digest that a local directory must have; stored with a model."
    )
    layer: int = Field(-1, description="Hidden state of a transformers encoder; -1 its output.")
    positions: int = Field(4, ge=1, le=64, description="Windows over a clip's time, one embedding each.")
    tokens: int = Field(1, ge=1, le=64, description="Slot positions made from each embedding.")
    max_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="Seconds used of one clip; of a longer one, the middle of each of `positions` stretches.",
    )
    min_seconds: float = Field(0.1, ge=0.05, description="A shorter clip is refused.")
    features: str = Field(
        "",
        description="Table of precomputed features instead of sound files: .npy, .safetensors or .parquet.",
    )
    row: str = Field(
        "", description="Item field with the item's row in the table; empty: ids, or the catalog's rows."
    )
    ids: str = Field(
        "", description="For .npy and .safetensors: file of item ids in row order (.json or lines)."
    )
    standardise: bool = Field(True, description="Mean 0 and deviation 1 of every dimension of the table.")

    @model_validator(mode="after")
    def _fits_together(self) -> AudioConfig:
        if self.encoder == SPEECH_EMBEDDING and self.layer != -1:
            raise ValueError(f"{SPEECH_EMBEDDING} has its output only; leave `layer` out")
        if self.features and self.encoder != SPEECH_EMBEDDING:
            raise ValueError("`features` takes the place of an encoder; leave one of the two out")
        if not self.features and (self.row or self.ids):
            raise ValueError("`row` and `ids` go with `features`, the table they are about")
        if self.row and self.ids:
            raise ValueError("`row` and `ids` both say which row is an item's; leave one out")
        if self.max_seconds < self.positions * self.min_seconds:
            raise ValueError("`max_seconds` must give each of `positions` windows `min_seconds`")
        return self


class AudioModality(Modality[AudioConfig]):
    """An item's sound: windows of samples, (windows samples), or a row of a table, (d)."""

    @property
    def cache_features(self) -> bool:
        # A table is its own cache.
        return not self.config.features

    def read(self, item: Item) -> sound.Windows | Float[np.ndarray, " d"] | None:
        if self.config.features:
            row = self._row(item)
            return None if row is None else self._values[row].copy()
        value = self._value(item)
        if value is None:
            return None
        return sound.windows(value, _name(item, self.config.field), self._source.rate, self._cut)

    def build_encoder(self, llm: LanguageModel) -> Encoder:
        if self.config.features:
            return VectorEncoder(self._table.values.shape[1]).eval()
        return self._source.encoder()

    def build_projector(self, d_enc: int, d_llm: int) -> Projector:
        return MlpProjector(d_enc, d_llm, tokens=self.config.tokens)

    def positions(self) -> int:
        windows = 1 if self.config.features else self.config.positions
        return windows * self.config.tokens

    def describe(self, item: Item) -> str:
        try:
            if self.config.features:
                row = self._row(item)
                name, values = Path(self._table.origin).name, self._table.values
                return "" if row is None else f"audio features, row {row} of {name}, d={values.shape[1]}"
            value = self._value(item)
            if value is None:
                return ""
            named = Path(value).name if isinstance(value, str) else f"{len(value)} bytes"
            return f"audio, {sound.duration(value, _name(item, self.config.field)):.1f} s, {named}"
        except DamagedInputError as error:
            return error.problem

    @classmethod
    def examples(cls, folder: Path) -> tuple[AudioConfig, Sequence[Item]]:
        items = []
        for row, (hertz, seconds) in enumerate(((220, 0.6), (880, 2.2), (1760, 3.5), (440, 5.0))):
            path = folder / f"{row}.wav"
            angles = 2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000
            soundfile.write(path, 0.3 * np.sin(angles), 16_000)
            fields = {"audio": path.name}
            items.append(Item(row, str(row), f"A tone of {hertz} hertz", fields, folder=folder))
        return AudioConfig(), items

    def resolved_config(self) -> AudioConfig:
        if self.config.features:
            return self.config.model_copy(update={"features": self._table.pinned})
        return self.config.model_copy(update={"revision": self._source.revision})

    def fingerprint(self) -> str:
        # Windows and rows are in the raw inputs' own digests.
        if self.config.features:
            return json.dumps(["features", self._table.digest, self.config.standardise])
        return json.dumps([self._source.revision, self.config.layer])

    def _value(self, item: Item) -> str | bytes | None:
        value = item.content(self.config.field)
        if value is None:
            return None
        if not isinstance(value, (str, bytes)):
            raise DamagedInputError(
                f"{_name(item, self.config.field)} is a {type(value).__name__}, neither path nor bytes.",
                "Mend the column.",
            )
        return value

    def _row(self, item: Item) -> int | None:
        """The item's row of the table; None if it has none, or one of NaN."""
        row = self._named_row(item)
        if row is None:
            return None
        count = len(self._table.values)
        if row >= count and self.config.row:
            raise DamagedInputError(
                f"{self.config.row} of item {item.id} is row {row}, but {self._table.origin} has {count} rows.",
                "Mend the column, or give this catalog's table: --set audio.features=FILE",
            )
        if row >= count:
            raise UsageError(
                f"{self._table.origin} has no ids and {count} rows, the catalog has more.",
                "Say whose rows they are: --set audio.row=FIELD or --set audio.ids=FILE",
            )
        if not self._table.present[row]:
            return None
        if not np.isfinite(self._table.values[row]).all():
            raise DamagedInputError(
                f"The audio features of item {item.id}, row {row} of {self._table.origin}, are not finite.",
                "Mend the row, or fill it with NaN to leave the item out.",
            )
        return row

    def _named_row(self, item: Item) -> int | None:
        if not self.config.row:
            rows = self._table.rows
            return item.index if rows is None else rows.get(item.id)
        value: Any = item.fields.get(self.config.row)
        if value is None or value == "":
            return None
        try:
            row = int(value)
        except (TypeError, ValueError, OverflowError):
            row = -1
        if row < 0 or isinstance(value, bool) or (isinstance(value, float) and row != value):
            raise DamagedInputError(
                f"{self.config.row} of item {item.id} is {value!r}, not a row number from 0.",
                "Mend the column, or clear it; the item does without.",
            )
        return row

    @cached_property
    def _table(self) -> Table:
        return read_table(self.config.features, self.config.ids, "audio.features")

    @cached_property
    def _values(self) -> Float[np.ndarray, "n d"]:
        return self._table.standardised if self.config.standardise else self._table.values

    @cached_property
    def _source(self) -> Source:
        c = self.config
        if c.encoder == SPEECH_EMBEDDING:
            return Speech(c.revision, self.context.home)
        return Tower(c.encoder, c.revision, c.layer)

    @property
    def _cut(self) -> sound.Cut:
        return sound.Cut(self.config.positions, self.config.max_seconds, self.config.min_seconds)


def _name(item: Item, field: str) -> str:
    """What a message calls an item's sound."""
    path, named = item.path(field), f"{field} of item {item.id}"
    return f"{path} ({named})" if path else named
