"""A composite: adapters of several modalities merged into one, every projector kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from earec_core.artifacts.base import BaseRecord, Manifest, ModalityRecord, Record
from earec_core.config import PromptConfig


class MethodRecord(Record):
    """How adapters were merged: the method's name, the rank asked for, and the method's options."""

    name: str
    rank: int | None = None
    options: Mapping[str, int | float] = {}


class CompositeManifest(Manifest):
    """A composite's manifest.

    Attributes:
        parents: the adapters, in the order of `modalities`, then what those were made from.
        weights: lambda by modality, as it was used; `layer_weights` for single layers.
        overridden: mismatches of the adapters that the user allowed, by the flag's name.
        report: what the composition measured, see `earec_core.compose.ComposeReport`.
        search: how the weights were found; None where they were given.
    """

    title: ClassVar[str] = "a composite"
    remedy: ClassVar[str] = "Make one: earec compose."

    kind: Literal["composite"] = "composite"
    modalities: Mapping[str, ModalityRecord]
    base: BaseRecord
    prompt: PromptConfig
    weights: Mapping[str, float]
    layer_weights: Mapping[str, Mapping[str, float]] | None = None
    method: MethodRecord
    overridden: Mapping[str, Any] = {}
    report: Mapping[str, Any] = {}
    search: Mapping[str, Any] | None = None

    @property
    def adapters(self) -> dict[str, str]:
        """Id of each modality's adapter."""
        return dict(zip(self.modalities, self.parents, strict=False))

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        method = dict(data["method"])
        name, rank = method.pop("name"), method.pop("rank", None)
        return {**data, "method": {"name": name, "rank": rank, "options": method}}
