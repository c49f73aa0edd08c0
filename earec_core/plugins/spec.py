"""What a plugin declares about a modality. Standard library only, so that listing imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

API_VERSION = (2, 2)
"""Version of the plugin contract. A plugin's major must equal it; its minor must not be above it."""


@dataclass(frozen=True, slots=True)
class ModalitySpec:
    """A modality, declared by the entry point `earec.modalities` of a distribution.

    Attributes:
        name: how users name it (`--modality NAME`); equals the entry point's name.
        api_version: the contract's version that the plugin was written for.
        summary: one line for `earec plugins list`.
        config: `package.module:Class`, a frozen pydantic model that refuses unknown keys.
        factory: `package.module:Class`, a subclass of `earec_core.modality.Modality`.
        slot_token: how people are shown its place in a prompt, one word in angle brackets, e.g. `<image>`.
        order: place among the slots of one item, low first (Eq. 5 writes text, image, behavior).
        requires: import names that must be present; reported as `missing-dependency` otherwise.
    """

    name: str
    api_version: tuple[int, int]
    summary: str
    config: str
    factory: str
    slot_token: str
    order: int = 100
    requires: tuple[str, ...] = ()
