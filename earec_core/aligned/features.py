"""A modality at work on a catalog: which items have it, their features, how many slot positions they take."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earec_core.aligned.feature_store import FeatureStore
from earec_core.errors import DamagedInputError
from earec_core.modality import (
    Encoded,
    Encoder,
    LanguageModel,
    Modality,
    Projector,
    content_digest,
    pad,
)
from earec_core.types import Item, Show

_BATCH = 64
_SHARD_BYTES, _SHARD_ITEMS = 64 << 20, 16384


@dataclass(frozen=True)
class StoredFeatures:
    """Encoder outputs of a catalog's items, read from a store when they are asked for.

    Attributes:
        inputs: digest of each item's raw input, by row.
    """

    inputs: Mapping[int, bytes]
    store: FeatureStore
    device: torch.device

    def __call__(self, rows: Sequence[int]) -> Encoded:
        """The encoder's output for the items of these rows."""
        return pad([self.store.read(self.inputs[row]).to(self.device) for row in rows])

    def size(self, row: int) -> Hashable:
        """Items of one size take as many slot positions: a projector's mask follows from the encoder's alone."""
        return self.store.length(self.inputs[row])


@dataclass(frozen=True)
class FreshFeatures:
    """The same of an encoder that is as fast as reading them would be: encoded whenever they are asked for.

    Attributes:
        inputs: raw inputs by row.
    """

    inputs: Mapping[int, Any]
    encoder: Encoder

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> Encoded:
        """The encoder's output for the items of these rows."""
        encoded: Encoded = self.encoder([self.inputs[row] for row in rows])
        return encoded

    def size(self, row: int) -> Hashable:
        """The length of an input is not known before it is encoded, so each is a size of its own."""
        return row


Features = StoredFeatures | FreshFeatures


@dataclass(frozen=True, eq=False)
class ModalityInputs:
    """One modality's inputs over a catalog's items; `read_inputs` makes them.

    Attributes:
        name: the modality.
        modality, encoder: its frozen parts.
        projector: what alignment trains; `AlignedModel` registers it.
        encoded: the encoder's output for the items of some rows.
        positions: slot positions by row; items whose input takes none are left out.
        damaged: why the input of an item was there and could not be read, by the item's id.
    """

    name: str
    modality: Modality[Any]
    encoder: Encoder
    projector: Projector
    encoded: Features
    positions: Mapping[int, int]
    damaged: Mapping[str, str]

    @property
    def rows(self) -> tuple[int, ...]:
        """The items that have the modality."""
        return tuple(self.encoded.inputs)

    def __contains__(self, row: object) -> bool:
        return row in self.positions

    def resolved_config(self) -> dict[str, Any]:
        """The plugin's configuration with every name made exact, as JSON has it."""
        config: dict[str, Any] = self.modality.resolved_config().model_dump(mode="json")
        return config

    def calibrate(self, rms: float) -> None:
        """Start the projector's output at the size of the word embeddings."""
        if self.rows:
            self.projector.calibrate(self.encoded(self.rows[:256]), rms)


def read_inputs(
    name: str,
    modality: Modality[Any],
    items: Sequence[Item],
    llm: LanguageModel,
    *,
    cache: Path | None = None,
    progress: Show = lambda *_: None,
) -> ModalityInputs:
    """Read a modality's inputs of a catalog, encode those that are not in the cache, measure their slots.

    Args:
        cache: folder of the feature stores; None keeps encoder outputs in memory.
    """
    device = llm.word_embedding.weight.device
    encoder = _encoder(modality, llm)
    projector = modality.build_projector(encoder.d_enc, llm.d_llm).eval().to(device)
    damaged: dict[str, str] = {}
    features: Features
    if modality.cache_features:
        store = FeatureStore.of(cache, name, modality.fingerprint())
        digests = _encode_missing(name, modality, encoder, items, store, damaged, progress)
        features = StoredFeatures(digests, store, device)
    else:
        raws = {item.index: raw for item in items if (raw := _read(modality, item, damaged)) is not None}
        features = FreshFeatures(raws, encoder)
    positions = _measure(features, projector)
    return ModalityInputs(name, modality, encoder, projector, features, positions, damaged)


def encode_part(
    name: str,
    modality: Modality[Any],
    items: Sequence[Item],
    llm: LanguageModel,
    *,
    cache: Path,
    part: tuple[int, int],
    progress: Show = lambda *_: None,
) -> None:
    """Encode a share of a catalog's inputs into the cache: one of several workers before `read_inputs`.

    Args:
        part: (i, n) takes every n-th distinct input, from the i-th on.
    """
    if modality.cache_features:
        store = FeatureStore.of(cache, name, modality.fingerprint())
        _encode_missing(name, modality, _encoder(modality, llm), items, store, {}, progress, part)


def _encoder(modality: Modality[Any], llm: LanguageModel) -> Encoder:
    return modality.build_encoder(llm).eval().requires_grad_(False).to(llm.word_embedding.weight.device)


def _read(modality: Modality[Any], item: Item, damaged: dict[str, str]) -> Any | None:
    try:
        return modality.read(item)
    except DamagedInputError as error:
        damaged[item.id] = str(error)
        return None


@torch.no_grad()
def _encode_missing(
    name: str,
    modality: Modality[Any],
    encoder: Encoder,
    items: Sequence[Item],
    store: FeatureStore,
    damaged: dict[str, str],
    progress: Show,
    part: tuple[int, int] = (0, 1),
) -> dict[int, bytes]:
    """Put what the store lacks of a part of the items into it; returns each row's digest, notes damaged items."""
    # Raw inputs are read twice rather than kept: a catalog's pictures do not fit into memory.
    digests, example = dict[int, bytes](), dict[bytes, Item]()
    for item in items:
        if (raw := _read(modality, item, damaged)) is not None:
            digests[item.index] = digest = content_digest(raw)
            example[digest] = item
    missing = [digest for digest in sorted(example)[part[0] :: part[1]] if digest not in store]
    waiting: dict[bytes, Tensor] = {}
    for start in range(0, len(missing), _BATCH):
        chunk = missing[start : start + _BATCH]
        h, mask = encoder([modality.read(example[digest]) for digest in chunk])
        waiting |= {digest: h[i, mask[i]].float().cpu() for i, digest in enumerate(chunk)}
        done = start + len(chunk)
        size = sum(h.nbytes for h in waiting.values())
        if done == len(missing) or size >= _SHARD_BYTES or len(waiting) >= _SHARD_ITEMS:
            store.write(waiting)
            waiting = {}
        progress(done, len(missing), f"{name} features")
    return digests


@torch.no_grad()
def _measure(features: Features, projector: Projector) -> dict[int, int]:
    """Slot positions by row, rows without any left out; one of each size is looked at."""
    first: dict[Hashable, int] = {}
    for row in features.inputs:
        first.setdefault(features.size(row), row)
    examples, counts = list(first.values()), list[int]()
    for start in range(0, len(examples), _BATCH):
        counts += projector(features(examples[start : start + _BATCH])).mask.sum(1).tolist()
    positions = dict(zip(first, counts, strict=True))
    return {row: n for row in features.inputs if (n := positions[features.size(row)])}
