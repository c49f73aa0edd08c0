"""An adapter: one modality aligned to the anchor. Files: a PEFT directory and the modality's projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from earec_core.artifacts.base import BaseRecord, DataRecord, Digest, Manifest, ModalityRecord, Record
from earec_core.config import LoraSettings, PromptConfig


class TrainingRecord(Record):
    """How an adapter was trained.

    Attributes:
        config: digest of the run's resolved configuration.
        data: the catalog.
        steps, kept_step: optimizer steps done, and the one whose parameters are stored.
        items: items trained and validated on, and those left out, by reason.
    """

    config: Digest
    data: DataRecord
    seed: int
    steps: int
    kept_step: int
    items: Mapping[str, int]


class AdapterManifest(Manifest):
    """An adapter's manifest; a guard compares `base`, `prompt`, `lora.seed` and the plugin's version."""

    title: ClassVar[str] = "an adapter"
    remedy: ClassVar[str] = "Make one: earec align."

    kind: Literal["adapter"] = "adapter"
    modality: str
    modalities: Mapping[str, ModalityRecord]
    base: BaseRecord
    prompt: PromptConfig
    lora: LoraSettings
    method: Literal["lora"] = "lora"
    training: TrainingRecord
    metrics: Mapping[str, float]

    @property
    def record(self) -> ModalityRecord:
        """The one modality's."""
        return self.modalities[self.modality]
