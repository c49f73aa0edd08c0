"""A modality at work on a catalog: which items have it, their cached features, their slot embeddings."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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
from earec_core.types import Item, Slot

_BATCH = 64


@dataclass(frozen=True)
class Damaged:
    """An item whose input was there and could not be read."""

    item: str
    why: str


class ModalityInputs:
    """One modality's inputs over a catalog's items.

    Attributes:
        name: the modality.
        modality, encoder, projector: its parts; the projector is what alignment trains.
        damaged: items that lost this modality because their input could not be read.
    """

    def __init__(
        self,
        name: str,
        modality: Modality[Any],
        items: Sequence[Item],
        llm: LanguageModel,
        *,
        cache: Path | None = None,
        progress: Callable[[int, int, str], None] = lambda *_: None,
    ) -> None:
        self.name, self.modality = name, modality
        self._device = llm.word_embedding.weight.device
        self.encoder: Encoder = modality.build_encoder(llm).eval().requires_grad_(False).to(self._device)
        projector = modality.build_projector(self.encoder.d_enc, llm.d_llm)
        self.projector: Projector = projector.eval().to(self._device)
        self.damaged: tuple[Damaged, ...] = ()
        self._raws: dict[int, Any] = {}
        self._features: dict[int, Float[Tensor, "t d"]] = {}
        if modality.cache_features:
            self._features = self._cached(items, cache, progress)
        else:
            self._raws = {item.index: raw for item in items if (raw := self._read(item)) is not None}
        self.rows: tuple[int, ...] = tuple(self._features or self._raws)
        self._positions = self._measure()

    def __contains__(self, row: object) -> bool:
        return row in self._positions

    def positions(self, row: int) -> int:
        """Slot positions that the item's input takes."""
        return self._positions[row]

    def encoded(self, rows: Sequence[int]) -> Encoded:
        """Encoder output of the items of these rows."""
        if self._features:
            return pad([self._features[row].to(self._device) for row in rows])
        with torch.no_grad():
            encoded: Encoded = self.encoder([self._raws[row] for row in rows])
        return encoded

    def slots(self, rows: Sequence[int]) -> dict[Slot, Float[Tensor, "k d_llm"]]:
        """Slot embeddings of these rows (Eq. 1), with gradient to the projector."""
        if not rows:
            return {}
        h, mask = self.projector(self.encoded(rows))
        return {Slot(self.name, row): h[i, mask[i]] for i, row in enumerate(rows)}

    def calibrate(self, rms: float) -> None:
        """Start the projector's output at the size of the word embeddings."""
        if self.rows:
            self.projector.calibrate(self.encoded(self.rows[:256]), rms)

    @torch.no_grad()
    def _measure(self) -> dict[int, int]:
        lengths: dict[int, int] = {}
        for start in range(0, len(self.rows), _BATCH):
            rows = self.rows[start : start + _BATCH]
            counts = self.projector(self.encoded(rows)).mask.sum(1).tolist()
            lengths.update(zip(rows, counts, strict=True))
        return {row: n for row, n in lengths.items() if n}

    def _read(self, item: Item) -> Any | None:
        try:
            return self.modality.read(item)
        except DamagedInputError as error:
            self.damaged += (Damaged(item.id, str(error)),)
            return None

    @torch.no_grad()
    def _cached(
        self, items: Sequence[Item], cache: Path | None, progress: Callable[[int, int, str], None]
    ) -> dict[int, Tensor]:
        # Raw inputs are read twice rather than kept: a catalog's pictures do not fit into memory.
        digests = {
            item.index: content_digest(raw).hex() for item in items if (raw := self._read(item)) is not None
        }
        if not digests:
            return {}
        unique = sorted(set(digests.values()))
        key = hashlib.sha256(
            json.dumps([self.name, self.modality.fingerprint(), unique]).encode()
        ).hexdigest()
        file = cache / f"{self.name}-{key[:32]}.safetensors" if cache else None
        if file is not None and file.exists():
            with suppress(SafetensorError, OSError), safe_open(str(file), framework="pt") as stored:
                h, lengths = stored.get_tensor("h"), stored.get_tensor("lengths").tolist()
                known = {d: h[i, :n].clone() for i, (d, n) in enumerate(zip(unique, lengths, strict=True))}
                return {row: known[digest] for row, digest in digests.items()}
        by_row = {item.index: item for item in items}
        example = {digest: by_row[row] for row, digest in digests.items()}
        known = {}
        for start in range(0, len(unique), _BATCH):
            chunk = unique[start : start + _BATCH]
            h, mask = self.encoder([self.modality.read(example[d]) for d in chunk])
            known.update({d: h[i, mask[i]].float().cpu() for i, d in enumerate(chunk)})
            progress(min(start + _BATCH, len(unique)), len(unique), f"{self.name} features")
        if file is not None:
            _write(file, pad([known[d] for d in unique]))
        return {row: known[digest] for row, digest in digests.items()}


def _write(file: Path, features: Encoded) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temp = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    os.close(descriptor)
    try:
        save_file({"h": features.h.contiguous(), "lengths": features.mask.sum(1)}, temp)
        Path(temp).replace(file)
    finally:
        Path(temp).unlink(missing_ok=True)
