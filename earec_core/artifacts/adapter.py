"""An adapter: one modality aligned to the anchor. Files: a PEFT directory and the modality's projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from earec_core.artifacts.base import (
    BaseRecord,
    ChatRecord,
    DataRecord,
    Digest,
    Manifest,
    ModalityName,
    ModalityRecord,
    Record,
)
from earec_core.config import LoraSettings, PromptConfig


class EngineRecord(Record):
    """What ran a training; what came out does not depend on it but for rounding.

    Attributes:
        name: `torch`, or `deepspeed`.
        processes: that trained together.
        settings: of the engine, as it ran with them.
    """

    name: str
    processes: int
    settings: Mapping[str, Any] = {}


class TrainingRecord(Record):
    """How an adapter was trained.

    Attributes:
        config: digest of the run's resolved configuration.
        data: the catalog.
        steps, kept_step: optimizer steps done, and the one whose parameters are stored.
        items: items trained and validated on, and those left out, by reason.
        engines: what ran it, in order: several where it was gone on with otherwise; none was written down before
            there was a choice.
    """

    config: Digest
    data: DataRecord
    seed: int
    steps: int
    kept_step: int
    items: Mapping[str, int]
    engines: tuple[EngineRecord, ...] = ()


class AdapterManifest(Manifest):
    """An adapter's manifest; a guard compares `base`, `prompt`, `chat`, `lora.seed` and the plugin's version.

    Attributes:
        chat: the text around the user's message; None for one stored before it was.
        training: None for one that was imported, of whose training nothing is known, the seed of its A included.
    """

    title: ClassVar[str] = "an adapter"
    remedy: ClassVar[str] = "Make one: earec align."

    kind: Literal["adapter"] = "adapter"
    modality: ModalityName
    modalities: Mapping[ModalityName, ModalityRecord]
    base: BaseRecord
    prompt: PromptConfig
    chat: ChatRecord | None = None
    lora: LoraSettings
    method: Literal["lora"] = "lora"
    training: TrainingRecord | None
    metrics: Mapping[str, float]

    @model_validator(mode="after")
    def _one_modality(self) -> Self:
        if [*self.modalities] != [self.modality]:
            raise ValueError(
                f"its modality is {self.modality!r}, its modalities are {', '.join(self.modalities)}"
            )
        return self

    @property
    def record(self) -> ModalityRecord:
        """The one modality's."""
        return self.modalities[self.modality]
