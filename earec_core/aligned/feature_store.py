"""Encoder outputs on disk by the digest of what was encoded, in shards that several workers write at once.

A shard is a safetensors file: `h` [sum of t, d] holds the embeddings of its inputs one after another, `lengths` how
many each input has, the metadata the inputs' digests. It appears complete or not at all, under a name of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from earec_core.errors import EarecError

_DIGEST = 32


class FeatureStore:
    """What an encoder made of the inputs seen so far; read lazily, so that memory holds an index alone.

    Args:
        folder: where the shards are; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._shards: list[Any] = []
        self._names: set[str] = set()
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._in_memory: dict[bytes, Float[Tensor, "t d"]] = {}
        self.refresh()

    @classmethod
    def of(cls, cache: Path | None, modality: str, fingerprint: str) -> FeatureStore:
        """The store of one modality's encoder.

        Args:
            cache: the folder of all such stores; None keeps everything in memory.
            fingerprint: what the encoder's output depends on (`Modality.fingerprint`).
        """
        key = hashlib.sha256(json.dumps([modality, fingerprint]).encode()).hexdigest()
        return cls(cache / f"{modality}-{key[:32]}" if cache else None)

    def refresh(self) -> None:
        """Take up the shards that others have written since; a damaged one is removed."""
        if self.folder is not None:
            for file in sorted(self.folder.glob("*.safetensors")):
                if file.name not in self._names:
                    self._take_up(file)

    def __contains__(self, digest: object) -> bool:
        return digest in self._places or digest in self._in_memory

    def __len__(self) -> int:
        return len(self._places.keys() | self._in_memory.keys())

    def length(self, digest: bytes) -> int:
        """How many embeddings (t) an input has."""
        held = self._in_memory.get(digest)
        return self._places[digest][2] if held is None else len(held)

    def read(self, digests: Iterable[bytes]) -> list[Float[Tensor, "t d"]]:
        """The embeddings of some inputs, float32 on the CPU."""
        return [self._read(digest) for digest in digests]

    def write(self, features: Mapping[bytes, Float[Tensor, "t d"]]) -> None:
        """Add a shard. Inputs whose embeddings are not finite are kept in memory and encoded again next time.

        Raises:
            EarecError: it cannot be written.
        """
        lasting = {
            digest: h for digest, h in features.items() if self.folder and bool(torch.isfinite(h).all())
        }
        self._in_memory |= {digest: h for digest, h in features.items() if digest not in lasting}
        if self.folder is not None and lasting:
            file = self.folder / f"{uuid.uuid4().hex}.safetensors"
            try:
                _write(file, lasting)
            except (OSError, SafetensorError) as error:
                raise EarecError(
                    f"The features could not be written to {self.folder} ({error}).",
                    "Free some space, or set EAREC_HOME to another folder, then run again.",
                ) from error
            self._take_up(file)

    def _read(self, digest: bytes) -> Tensor:
        if digest in self._in_memory:
            return self._in_memory[digest]
        shard, start, length = self._places[digest]
        rows: Tensor = self._shards[shard][start : start + length]
        return rows

    def _take_up(self, file: Path) -> None:
        try:
            with safe_open(str(file), framework="pt") as stored:
                digests = bytes.fromhex(stored.metadata()["digests"])
                lengths, h = stored.get_tensor("lengths").tolist(), stored.get_slice("h")
            if len(digests) != _DIGEST * len(lengths) or h.get_shape()[0] != sum(lengths):
                raise ValueError("its parts do not belong together")
        except OSError:
            return
        except (SafetensorError, KeyError, TypeError, ValueError):
            with suppress(OSError):
                file.unlink()
            return
        start = 0
        for i, length in enumerate(lengths):
            digest = digests[_DIGEST * i : _DIGEST * (i + 1)]
            self._places.setdefault(digest, (len(self._shards), start, length))
            start += length
        self._shards.append(h)
        self._names.add(file.name)


def _write(file: Path, features: Mapping[bytes, Float[Tensor, "t d"]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temp = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    os.close(descriptor)
    lengths = torch.tensor([len(h) for h in features.values()])
    try:
        save_file(
            {"h": torch.cat(list(features.values())), "lengths": lengths},
            temp,
            metadata={"digests": b"".join(features).hex()},
        )
        Path(temp).replace(file)
    finally:
        Path(temp).unlink(missing_ok=True)
