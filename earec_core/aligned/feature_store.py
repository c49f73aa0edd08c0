"""Encoder outputs on disk by the digest of what was encoded, in shards that several workers write at once.

A shard is a safetensors file: `h` [sum of t, d] holds the embeddings of its inputs one after another, `lengths` how
many each input has, the metadata the inputs' digests. It appears complete or not at all, under a name of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from earec_core import files
from earec_core.errors import EarecError

_DIGEST = 32


class FeatureStore:
    """An encoder's outputs for the inputs seen so far, read lazily: memory holds an index alone.

    Args:
        folder: where the shards are, which are indexed at once; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._places: dict[bytes, tuple[Any, int, int]] = {}
        self._in_memory: dict[bytes, Float[Tensor, "t d"]] = {}
        for file in sorted(folder.glob("*.safetensors")) if folder else ():
            self._take_up(file)

    @classmethod
    def of(cls, cache: Path | None, modality: str, fingerprint: str) -> FeatureStore:
        """The store of one modality's encoder.

        Args:
            cache: the folder of all such stores; None keeps everything in memory.
            fingerprint: what the encoder's output depends on (`Modality.fingerprint`).
        """
        key = files.digest([modality, fingerprint])
        return cls(cache / f"{modality}-{key[:32]}" if cache else None)

    def __contains__(self, digest: object) -> bool:
        return digest in self._places or digest in self._in_memory

    def length(self, digest: bytes) -> int:
        """How many embeddings (t) an input has."""
        return len(self._in_memory[digest]) if digest in self._in_memory else self._places[digest][2]

    def read(self, digest: bytes) -> Float[Tensor, "t d"]:
        """The embeddings of an input, float32 on the CPU."""
        if digest in self._in_memory:
            return self._in_memory[digest]
        shard, start, length = self._places[digest]
        h: Tensor = shard[start : start + length]
        return h

    def write(self, features: Mapping[bytes, Float[Tensor, "t d"]]) -> None:
        """Add a shard. Inputs whose embeddings are not finite are kept in memory and encoded again next time.

        Raises:
            EarecError: it cannot be written.
        """
        lasting = {digest: h for digest, h in features.items() if self.folder and h.isfinite().all()}
        self._in_memory |= {digest: h for digest, h in features.items() if digest not in lasting}
        if self.folder and lasting:
            file = self.folder / f"{uuid.uuid4().hex}.safetensors"
            shard = {
                "h": torch.cat(list(lasting.values())),
                "lengths": torch.tensor([len(h) for h in lasting.values()]),
            }
            try:
                with files.replacing(file) as temporary:
                    save_file(shard, temporary, metadata={"digests": b"".join(lasting).hex()})
            except (OSError, SafetensorError) as error:
                raise EarecError(
                    f"The features could not be written to {self.folder} ({error}).",
                    "Free some space, or set EAREC_HOME to another folder, then run again.",
                ) from error
            self._take_up(file)

    def _take_up(self, file: Path) -> None:
        """Index a shard; a damaged one is removed."""
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
            self._places.setdefault(digest, (h, start, length))
            start += length
