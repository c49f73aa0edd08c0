"""Vectors of a catalog's items, every one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError

from earec_core.artifacts.base import BaseRecord, ChatRecord, DataRecord, ModalityName, open_as
from earec_core.artifacts.tables import IDS, TableManifest, TableShape, read_table, save_table
from earec_core.catalog import Catalog
from earec_core.config import PromptConfig
from earec_core.errors import IntegrityError, UsageError, one_line
from earec_registry import Registry

SLOTS = "slot-states"
"""The method of vectors that have a part of the same width for each of their modalities, side by side."""


class VectorsManifest(TableManifest):
    """The manifest of item vectors.

    Attributes:
        parents: the model, then what its encoders read.
        method: how an item's vector was read off.
        layer: of which layer's states; None: of the last's, after the norm.
        modalities: each plugin's configuration; empty for vectors made of vectors.
        code: SHA-256 of each plugin's source files.
        base: the LLM or the encoder of text that made them; None for vectors made of vectors.
        prompt, chat: of the LLM, if one made them.
        coverage: items that have each modality, and `none` of them; those `too_long` for the LLM, if any.
    """

    title: ClassVar[str] = "a table of item vectors"
    remedy: ClassVar[str] = "Make them with `earec encode`."

    kind: Literal["vectors"] = "vectors"
    method: str
    layer: int | None = None
    modalities: Mapping[ModalityName, Mapping[str, Any]] = {}
    code: Mapping[ModalityName, str] = {}
    base: BaseRecord | None = None
    prompt: PromptConfig | None = None
    chat: ChatRecord | None = None
    coverage: Mapping[str, int] = {}

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "kind": "vectors"}

    def other_space(self, other: VectorsManifest) -> list[str]:
        """In what these vectors differ from others, so that they are not in one space; nothing: they are.

        The modalities are compared by name: what they read of an item may be called otherwise in another catalog.
        """

        def told(one: VectorsManifest) -> dict[str, Any]:
            entries = {name: getattr(one, name) for name in ("parents", "method", "layer", "prompt", "chat")}
            base = one.base and one.base.model_dump(exclude={"id"})
            return {**entries, "base": base, "modalities": [*one.modalities], "width": one.shapes.d}

        mine, theirs = told(self), told(other)
        return [name for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of a catalog's items.

    Attributes:
        id: their id in the registry.
        vectors: one row an item, in the catalog's order; mapped from the stored file unless they were given.
        manifest: theirs, with the method, the modalities and the catalog.
    """

    id: str
    vectors: Float[np.ndarray, "n d"]
    manifest: VectorsManifest

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each modality where every one has its own, else of all together."""
        d = int(self.vectors.shape[1])
        parts = len(self.manifest.modalities) if self.manifest.method == SLOTS else 1
        return (d // parts,) * parts

    @classmethod
    def open(cls, registry: Registry, reference: str, catalog: Catalog) -> ItemVectors:
        """Stored vectors, checked against the catalog they are to be used with.

        Raises:
            UsageError: they are of another kind or another catalog.
            IntegrityError: they cannot be read.
        """
        found, item_ids = cls.open_with_ids(registry, reference)
        if item_ids != catalog.items["item_id"].to_list():
            raise UsageError(
                f"The vectors {reference!r} are of {found.manifest.data.name!r}, whose items are not "
                f"those of {catalog.name!r}.",
                f"Run `earec encode --data {catalog.path}`.",
            )
        return found

    @classmethod
    def open_with_ids(cls, registry: Registry, reference: str) -> tuple[ItemVectors, list[str]]:
        """Stored vectors without their catalog, and the ids of the items, by row.

        Raises:
            UsageError: they are of another kind.
            IntegrityError: they cannot be read.
        """
        stored = open_as(registry, reference, VectorsManifest)
        try:
            item_ids = json.loads((stored.folder / IDS).read_text())
            vectors = read_table(stored.folder / "vectors.safetensors", "vectors")
            shape = stored.manifest.shapes
            if vectors.shape != (shape.items, shape.d):
                raise ValueError(f"they are {vectors.shape}, not {shape.items, shape.d}")
        except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
            raise IntegrityError(
                f"The vectors {reference!r} cannot be read: {one_line(error)}.", "Encode again."
            ) from error
        return cls(stored.id, vectors, stored.manifest), item_ids

    @classmethod
    def save(
        cls,
        registry: Registry,
        vectors: Float[np.ndarray, "n d"] | Path,
        catalog: Catalog,
        *,
        name: str,
        why: str,
        **manifest: Any,
    ) -> ItemVectors:
        """Store vectors of a catalog's items, one row an item.

        Args:
            vectors: the table, or the file that `earec_core.artifacts.tables.write_table` made of it.
            manifest: fields of `VectorsManifest` beside the catalog and the shapes.
        """
        table = read_table(vectors, "vectors") if isinstance(vectors, Path) else vectors
        typed = VectorsManifest(
            data=DataRecord(name=catalog.name, digest=catalog.digest),
            shapes=TableShape(items=len(table), d=int(table.shape[1])),
            **manifest,
        )
        identity = save_table(registry, typed, vectors, catalog.ids(), name=name, why=why)
        if isinstance(vectors, Path):
            table = read_table(registry.materialize(identity) / "vectors.safetensors", "vectors")
        return cls(identity, table, typed)
