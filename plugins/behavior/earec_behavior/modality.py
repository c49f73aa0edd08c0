"""Behavior: an item's embedding in an existing recommender, through a trained MLP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float
from pydantic import Field

from earec_behavior import table
from earec_core.errors import DamagedInputError, UsageError
from earec_core.modality import Encoder, Item, LanguageModel, MlpProjector, Modality, PluginConfig, Projector
from earec_core.modality.tables import PIN, Table, VectorEncoder

_NEIGHBOURS = 3


class BehaviorConfig(PluginConfig):
    """Which table of item embeddings."""

    embeddings: str = Field(
        "",
        description="A registered table (name, name:tag or id) or a .npy, .parquet or .safetensors file; "
        "empty: what `earec behavior fit` registered for the catalog.",
    )
    ids: str | None = Field(
        None,
        description="For .npy and .safetensors: file of item ids in row order; none: the catalog's rows.",
    )
    tokens: int = Field(1, ge=1, description="Slot positions.")
    standardise: bool = Field(True, description="Mean 0 and deviation 1 of every dimension over the table.")


class BehaviorModality(Modality[BehaviorConfig]):
    """An item's embedding in an existing recommender."""

    @property
    def cache_features(self) -> bool:
        return False

    def read(self, item: Item) -> Float[np.ndarray, " d"] | None:
        row = self._row(item)
        if row is not None and not np.isfinite(self._table.values[row]).all():
            raise DamagedInputError(
                f"The embedding of item {item.id} in {self._table.origin} holds values that are not finite.",
                "Mend its row, or fill it with NaN to leave it out.",
            )
        return None if row is None else self._values[row].copy()

    def build_encoder(self, llm: LanguageModel) -> Encoder:
        return VectorEncoder(self._values.shape[1]).eval()

    def build_projector(self, d_enc: int, d_llm: int) -> Projector:
        return MlpProjector(d_enc, d_llm, tokens=self.config.tokens)

    def positions(self) -> int:
        return self.config.tokens

    def describe(self, item: Item) -> str:
        row = self._row(item)
        if row is None:
            return ""
        near = [self._table.ids[i] for i in self._nearest(row)]
        titles = self.context.titles(near)
        origin = self._artifact[:12] if self._artifact else self._table.origin
        text = f"item embedding of {origin}, d={self._values.shape[1]}"
        return f"{text}; nearest items: {'; '.join(titles.get(id_, id_) for id_ in near)}" if near else text

    def resolved_config(self) -> BehaviorConfig:
        return self.config.model_copy(update={"embeddings": self._table.pinned})

    def sources(self) -> tuple[str, ...]:
        return () if self._artifact is None else (self._artifact,)

    @classmethod
    def examples(cls, folder: Path) -> tuple[BehaviorConfig, Sequence[Item]]:
        names = [f"e{row}" for row in range(5)]
        vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
        file = folder / "embeddings.parquet"
        pl.DataFrame({"item_id": names, "embedding": vectors.tolist()}).write_parquet(file)
        items = [Item(row, name, f"Thing {row}") for row, name in enumerate(names)]
        return BehaviorConfig(embeddings=str(file)), items

    @cached_property
    def _table(self) -> Table:
        return table.load(self.config.embeddings, self.config.ids or "", self.context)

    @property
    def _artifact(self) -> str | None:
        """Id of the table in the registry; None of a file."""
        return None if PIN in self._table.pinned else self._table.pinned

    @cached_property
    def _values(self) -> Float[np.ndarray, "n d"]:
        return self._table.standardised if self.config.standardise else self._table.values

    @cached_property
    def _directions(self) -> Float[np.ndarray, "n d"]:
        values = np.where(np.isfinite(self._values), self._values, 0)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        directions: np.ndarray = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        return directions

    def _row(self, item: Item) -> int | None:
        rows, values = self._table.rows, self._table.values
        if rows is None and item.index >= len(values):
            raise UsageError(
                f"{self._table.origin} has no ids and {len(values)} rows, the catalog has more.",
                "Say whose rows they are: --set behavior.ids=FILE",
            )
        row = item.index if rows is None else rows.get(item.id)
        return row if row is not None and self._table.present[row] else None

    def _nearest(self, row: int) -> list[int]:
        """Rows of the highest cosine, best first."""
        cosine = self._directions @ self._directions[row]
        others = np.flatnonzero(self._table.present & (np.arange(len(cosine)) != row))
        best: list[int] = others[np.argsort(-cosine[others], kind="stable")[:_NEIGHBOURS]].tolist()
        return best
