"""A recommender with its items as it reads and scores them; what it writes is its own business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from earec_core.artifacts.base import BaseRecord, DataRecord, Manifest, ModalityName, Record
from earec_core.config import RecommenderConfig

RANKS = "test_ranks.safetensors"
"""Users' rows and the ranks of their test targets."""


class FitRecord(Record):
    """How a recommender was trained, and the epoch that was kept."""

    config: RecommenderConfig
    epoch: int


class RecommenderManifest(Manifest):
    """A recommender's manifest.

    Attributes:
        model: its name in the table of models.
        parents: the item vectors, if it was trained on some; then the recommender that it started from, if any.
        base, modalities: of a model that reads items' words, the encoder that it started from, and each plugin's
            configuration.
        metrics: HR@K and NDCG@K by `valid` and `test`.
    """

    title: ClassVar[str] = "a recommender"
    remedy: ClassVar[str] = "Train one: earec recommend train."

    kind: Literal["recommender"] = "recommender"
    model: str
    data: DataRecord
    training: FitRecord
    metrics: Mapping[str, Mapping[str, float]]
    base: BaseRecord | None = None
    modalities: Mapping[ModalityName, Mapping[str, Any]] = {}

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        names = {"ids": "sasrec", "vectors": "earec"}
        return {key: value for key, value in data.items() if key != "method"} | {
            "model": names[data["method"]]
        }
