"""Item embeddings that a modality's encoder reads, made by a recommender of the same catalog.

Items that the recommender learned nothing about are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from earec_core.artifacts.base import Record
from earec_core.artifacts.tables import TableManifest

TENSORS = "embeddings.safetensors"


class DistributionRecord(Record):
    """A distribution and its version."""

    distribution: str
    version: str


class EmbeddingsManifest(TableManifest):
    """The manifest of item embeddings.

    Attributes:
        modality: the modality that reads them.
        plugin: the plugin that made them.
        method: the recommender.
        training: its configuration, seed and epochs.
        metrics: HR@K and NDCG@K of the recommender itself, by `valid` and `test`.
    """

    title: ClassVar[str] = "a table of item embeddings"
    remedy: ClassVar[str] = "Make one with the command of the plugin whose modality reads it."

    kind: Literal["embeddings"] = "embeddings"
    modality: str
    plugin: DistributionRecord
    method: str
    training: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        data = {**data, "kind": "embeddings", "data": data["catalog"]}
        del data["catalog"]
        return data
