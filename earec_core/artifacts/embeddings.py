"""Item embeddings that a modality's encoder reads, made by a recommender of the same catalog.

Files: `embeddings.safetensors` with `embeddings` (n d), `item_ids.json` in row order; items that the recommender
learned nothing about are left out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from earec_core.artifacts.base import DataRecord, Manifest, Record, save
from earec_core.artifacts.vectors import IDS, TableShape
from earec_registry import Registry

TENSORS = "embeddings.safetensors"


class DistributionRecord(Record):
    """A distribution and its version."""

    distribution: str
    version: str


class EmbeddingsManifest(Manifest):
    """What item embeddings say.

    Attributes:
        modality: the modality that reads them.
        plugin: what made them.
        method: the recommender.
        training: its configuration, seed and epochs.
        metrics: HR@K and NDCG@K of the recommender itself, by `valid` and `test`.
    """

    title: ClassVar[str] = "a table of item embeddings"
    remedy: ClassVar[str] = "Make one with the command of the plugin whose modality reads it."

    kind: Literal["embeddings"] = "embeddings"
    modality: str
    plugin: DistributionRecord
    data: DataRecord
    shapes: TableShape
    method: str
    training: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in data.items() if key != "catalog"}, "kind": "embeddings"} | {
            "data": data["catalog"]
        }


def save_embeddings(
    registry: Registry,
    manifest: EmbeddingsManifest,
    embeddings: Float[np.ndarray, "n d"],
    item_ids: Sequence[str],
    *,
    name: str,
    why: str,
) -> str:
    """Store item embeddings, one row an id; gives the artifact's id."""
    with tempfile.TemporaryDirectory() as folder:
        files = {file: Path(folder) / file for file in (TENSORS, IDS)}
        save_file({"embeddings": np.ascontiguousarray(embeddings)}, files[TENSORS])
        files[IDS].write_text(json.dumps(list(item_ids), ensure_ascii=False))
        return save(registry, manifest, files, name=name, why=why)
