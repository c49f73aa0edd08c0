"""A modality at work on a catalog: which items have it, their features, how many slot positions they take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earec_core.aligned.blame import blamed, embedded, guarded
from earec_core.aligned.feature_store import FeatureStore
from earec_core.errors import DamagedInputError, PluginError
from earec_core.modality import (
    Encoded,
    Encoder,
    LanguageModel,
    Modality,
    Projector,
    content_digest,
    pad,
)
from earec_core.plugins import code_digest
from earec_core.types import Item, Show

EXAMPLES = 256
"""How many items a projector is calibrated on, at most."""
_BATCH = 64
_NOT_FINITE = "Its encoder gives NaN or infinity for it. Mend the plugin, or the item's input."
_SHARD_BYTES, _SHARD_ITEMS = 64 << 20, 16384


@dataclass(frozen=True)
class StoredFeatures:
    """Encoder outputs of a catalog's items, read from a store when they are asked for.

    Attributes:
        inputs: digest of each item's raw input, by row.
    """

    inputs: dict[int, bytes]
    store: FeatureStore
    device: torch.device

    def __call__(self, rows: Sequence[int]) -> Encoded:
        """The encoder's output for the items of these rows."""
        return pad([self.store.read(self.inputs[row]).to(self.device) for row in rows])

    def size(self, row: int) -> Hashable:
        """Items of one size take as many slot positions: a projector's mask follows from the encoder's alone."""
        return self.store.length(self.inputs[row])

    def digest(self, row: int) -> bytes:
        """What tells one input from another, 32 bytes."""
        return self.inputs[row]


@dataclass(frozen=True)
class FreshFeatures:
    """The same of an encoder that is as fast as reading them would be: encoded whenever they are asked for.

    Attributes:
        name: the modality.
        inputs: raw inputs by row.
    """

    name: str
    inputs: dict[int, Any]
    encoder: Encoder

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> Encoded:
        """The encoder's output for the items of these rows."""
        return _encoded(self.name, self.encoder, [self.inputs[row] for row in rows])

    def size(self, row: int) -> Hashable:
        """The length of an input is not known before it is encoded, so each is a size of its own."""
        return row

    def digest(self, row: int) -> bytes:
        """What tells one input from another, 32 bytes."""
        return content_digest(self.inputs[row])


Features = StoredFeatures | FreshFeatures


@dataclass(frozen=True, eq=False)
class ModalityInputs:
    """One modality's inputs over items of a catalog; `read_inputs` makes them.

    Attributes:
        name: the modality.
        modality, encoder: its frozen parts.
        projector: what alignment trains; `AlignedModel` registers it.
        store: where the encoder's outputs are kept; None where they are made when they are asked for.
        encoded: the encoder's output for the items of some rows.
        positions: slot positions by row; items whose input takes none are left out.
        damaged: why the input of an item was there and could not be used, by the item's id.
        device: where encoder and projector are.
        d_llm: width of what the projector gives.
    """

    name: str
    modality: Modality[Any]
    encoder: Encoder
    projector: Projector
    store: FeatureStore | None
    encoded: Features
    positions: Mapping[int, int]
    damaged: Mapping[str, str]
    device: torch.device
    d_llm: int

    @property
    def rows(self) -> tuple[int, ...]:
        """The items that have the modality."""
        return tuple(self.encoded.inputs)

    def __contains__(self, row: object) -> bool:
        return row in self.positions

    def over(self, items: Sequence[Item], *, progress: Show = lambda *_: None) -> ModalityInputs:
        """The same modality over other items, which are read, encoded if they are new, and their slots measured."""
        damaged: dict[str, str] = {}
        features: Features
        if self.store is not None:
            digests = _encode_missing(
                self.name, self.modality, self.encoder, items, self.store, damaged, progress
            )
            features = StoredFeatures(digests, self.store, self.device)
        else:
            raws = {
                item.index: raw for item in items if (raw := _read(self.modality, item, damaged)) is not None
            }
            features = FreshFeatures(self.name, raws, self.encoder)
        positions, unusable = _measure(features, self.project)
        for item in items:
            if item.index in unusable:
                damaged[item.id] = _NOT_FINITE
                del features.inputs[item.index]
        return replace(self, encoded=features, positions=positions, damaged=damaged)

    def resolved_config(self) -> dict[str, Any]:
        """The plugin's configuration with every name made exact, as JSON has it."""
        config: dict[str, Any] = self.modality.resolved_config().model_dump(mode="json")
        return config

    def project(self, encoded: Encoded, projector: Callable[[Encoded], Encoded] | None = None) -> Encoded:
        """What the projector makes of encoder outputs.

        Args:
            projector: one that wraps it; default: itself.

        Raises:
            PluginError: it fails, or gives something of another shape.
        """
        call = projector or self.projector
        return embedded(self.name, "its projector", lambda: call(encoded), len(encoded.h), self.d_llm)

    def code(self) -> str:
        """Digest of the plugin's source files."""
        return code_digest(type(self.modality))

    def calibrate(self, rms: float) -> None:
        """Start the projector's output at the size of the word embeddings.

        Raises:
            PluginError: it is not finite then.
        """
        if not self.rows:
            return
        examples = self.encoded(self.rows[:EXAMPLES])
        with blamed(self.name, "its projector's calibrate"):
            self.projector.calibrate(examples, rms)
        with torch.no_grad():
            h, mask = self.project(examples)
        if not h[mask].isfinite().all():
            raise PluginError(
                f"The projector of {self.name} gives NaN or infinity once it is calibrated.",
                f"Mend the modality's build_projector or calibrate (earec plugins check {self.name}).",
            )


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
    device, modality = llm.word_embedding.weight.device, guarded(name, modality)
    encoder = _encoder(modality, llm)
    projector = modality.build_projector(encoder.d_enc, llm.d_llm).eval().to(device)
    store = _store(cache, name, modality) if modality.cache_features else None
    none = FreshFeatures(name, {}, encoder)
    inputs = ModalityInputs(name, modality, encoder, projector, store, none, {}, {}, device, llm.d_llm)
    return inputs.over(items, progress=progress)


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
        modality = guarded(name, modality)
        store = _store(cache, name, modality)
        _encode_missing(name, modality, _encoder(modality, llm), items, store, {}, progress, part)


def _store(cache: Path | None, name: str, modality: Modality[Any]) -> FeatureStore:
    """Where the features are that this encoder made, and the plugin's code as it is now."""
    return FeatureStore.of(cache, name, f"{modality.fingerprint()} {code_digest(type(modality))}")


def _encoder(modality: Modality[Any], llm: LanguageModel) -> Encoder:
    return modality.build_encoder(llm).eval().requires_grad_(False).to(llm.word_embedding.weight.device)


def _encoded(name: str, encoder: Encoder, raws: Sequence[Any]) -> Encoded:
    return embedded(name, "its encoder", lambda: encoder(raws), len(raws), encoder.d_enc)


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
    """Put what the store lacks of a part of the items into it; returns each row's digest, notes damaged items.

    What the encoder's output is not finite for is not stored, and counts as damaged.
    """
    # Raw inputs are read twice rather than kept: a catalog's pictures do not fit into memory.
    digests, example = dict[int, bytes](), dict[bytes, Item]()
    for item in items:
        if (raw := _read(modality, item, damaged)) is not None:
            digests[item.index] = digest = content_digest(raw)
            example[digest] = item
    missing = [digest for digest in sorted(example)[part[0] :: part[1]] if digest not in store]
    waiting, unusable = dict[bytes, Tensor](), set[bytes]()
    for start in range(0, len(missing), _BATCH):
        chunk = missing[start : start + _BATCH]
        h, mask = _encoded(name, encoder, [modality.read(example[digest]) for digest in chunk])
        for i, finite in enumerate(_finite(h, mask)):
            if finite:
                waiting[chunk[i]] = h[i, mask[i]].float().cpu()
            else:
                unusable.add(chunk[i])
        done = start + len(chunk)
        size = sum(h.nbytes for h in waiting.values())
        if done == len(missing) or size >= _SHARD_BYTES or len(waiting) >= _SHARD_ITEMS:
            store.write(waiting)
            waiting = {}
        progress(done, len(missing), f"{name} features")
    damaged |= {item.id: _NOT_FINITE for item in items if digests.get(item.index) in unusable}
    return {row: digest for row, digest in digests.items() if digest not in unusable}


@torch.no_grad()
def _measure(features: Features, project: Callable[[Encoded], Encoded]) -> tuple[dict[int, int], set[int]]:
    """Slot positions by row, rows without any left out, and the rows that are not finite.

    One of each size is looked at; what a store holds is finite.
    """
    first: dict[Hashable, int] = {}
    for row in features.inputs:
        first.setdefault(features.size(row), row)
    examples, counts, unusable = list(first.values()), list[int](), set[int]()
    for start in range(0, len(examples), _BATCH):
        chunk = examples[start : start + _BATCH]
        encoded = features(chunk)
        counts += project(encoded).mask.sum(1).tolist()
        unusable |= {row for row, finite in zip(chunk, _finite(*encoded), strict=True) if not finite}
    positions = dict(zip(first, counts, strict=True)) | {features.size(row): 0 for row in unusable}
    return {row: n for row in features.inputs if (n := positions[features.size(row)])}, unusable


def _finite(h: Tensor, mask: Tensor) -> list[bool]:
    """Whether each input's embeddings are finite, padding aside, in float32 as they are used."""
    finite: list[bool] = (h.float().isfinite().all(2) | ~mask).all(1).tolist()
    return finite
