"""A catalog in windows: read some thousand items, build their prompts, encode what is not in the store yet.

Memory holds one window's items, inputs and prompts, whatever the catalog's size.
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import earec_core
from earec_core import files
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.stored import StoredModel, adapter_of, plugin_record
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.batches import prompt_vectors
from earec_core.encode.store import VectorStore
from earec_core.llm.prompts import Prompt
from earec_core.llm.tensors import raw
from earec_core.types import Item, Show, Slot
from earec_core.workspace import Workspace

WINDOW = 4096
"""Items that are read, sorted by length and encoded together."""


@dataclass(frozen=True)
class Job:
    """An encoding, everything checked.

    Attributes:
        stored: the model in the registry; None for the un-aligned backbone.
        model: what encodes, over no items yet.
        names: the modalities asked for; None: all of the model's.
    """

    workspace: Workspace
    catalog: Catalog
    stored: StoredModel | None
    model: AlignedModel
    config: RunConfig
    names: tuple[str, ...] | None

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of what the vectors are made from: the model, then what its encoders read."""
        sources = [source for one in self.model.inputs.values() for source in one.modality.sources()]
        return (*([self.stored.id] if self.stored else []), *sources)

    @property
    def key(self) -> str:
        """Digest of what all of the vectors depend on, beside each item's prompt: model, arithmetic, readout."""
        modalities = {
            name: {
                "config": inputs.resolved_config(),
                "fingerprint": inputs.modality.fingerprint(),
                "plugin": plugin_record(name).version,
                "code": inputs.code(),
                "projector": _state_digest(inputs.projector.state_dict()),
            }
            for name, inputs in self.model.inputs.items()
        }
        return files.digest(
            {
                "earec": earec_core.__version__,
                "base": self.model.backbone.info.model_dump(),
                "dtype": str(self.model.backbone.dtype),
                "model": self.stored.id if self.stored else None,
                "order": list(modalities),
                "modalities": modalities,
                "readout": self.config.encode.readout,
                "layer": self.config.encode.layer,
            }
        )

    def store(self, *, check: bool = True) -> VectorStore:
        """The store of vectors that are made alike; close it."""
        return VectorStore(self.workspace.vectors / self.key[:32], check=check)

    def forget(self) -> None:
        """Remove the vectors that were made alike."""
        shutil.rmtree(self.workspace.vectors / self.key[:32], ignore_errors=True)

    def windows(self, size: int | None = None) -> Iterator[range]:
        """The catalog's rows, so many at a time; default: `WINDOW`."""
        size = size or WINDOW
        for start in range(0, len(self.catalog), size):
            yield range(start, min(start + size, len(self.catalog)))

    def adapted(self) -> AbstractContextManager[Any]:
        """The backbone with the model's adapter on it for as long as the block lasts."""
        return self.model.backbone.adapted(adapter_of(self.stored)) if self.stored else nullcontext()

    def over(self, rows: Sequence[int]) -> AlignedModel:
        """The model over these items and those that their prompts may show beside."""
        items = self.catalog.items_at(rows)
        return self.model.over(items, self._related(items, rows), progress=self.workspace.progress)

    def _related(self, items: Sequence[Item], rows: Sequence[int]) -> Sequence[Item]:
        if not any(self.model.prompts.shows_related(name) for name in self.model.inputs):
            return []
        others = {row for item in items for row in item.relations if row not in rows}
        return self.catalog.items_at(sorted(others))


@dataclass(frozen=True)
class Coverage:
    """What of items is in their vectors.

    Attributes:
        having: items that have each modality.
        none: that have none of them.
        too_long: that do not fit, so that the prompt's text stands alone.
        cut: that are shown by the start of their input.
    """

    having: Mapping[str, int]
    none: int = 0
    too_long: int = 0
    cut: int = 0

    @classmethod
    def of(cls, model: AlignedModel, prompts: Sequence[Prompt]) -> Coverage:
        """That of the items of prompts."""
        rows = [prompt.item for prompt in prompts]
        held = {name: set(inputs.rows) for name, inputs in model.inputs.items()}
        return cls(
            {name: sum(row in having for row in rows) for name, having in held.items()},
            sum(not model.prompts.has(row) for row in rows),
            sum(prompt.too_long for prompt in prompts),
            sum(prompt.cut > 0 for prompt in prompts),
        )

    def __add__(self, other: Coverage) -> Coverage:
        having = {name: number + other.having[name] for name, number in self.having.items()}
        too_long, cut = self.too_long + other.too_long, self.cut + other.cut
        return Coverage(having, self.none + other.none, too_long, cut)

    def recorded(self) -> dict[str, int]:
        """As a manifest has it."""
        return {**self.having, "none": self.none} | ({"too_long": self.too_long} if self.too_long else {})


@dataclass(frozen=True)
class Window:
    """Some items, all of whose vectors are in the store.

    Attributes:
        rows: the items'.
        keys: of their vectors, 32 bytes each.
        coverage: of the items.
        damaged: by modality, why the input of an item was there and could not be used, by the item's id.
    """

    rows: range
    keys: Sequence[bytes]
    coverage: Coverage
    damaged: Mapping[str, Mapping[str, str]]


def encode_window(job: Job, store: VectorStore, rows: range, *, show: Show = lambda *_: None) -> Window:
    """Encode the items of a window that are not in the store, each distinct input once.

    The job's adapter must be on the backbone.

    Args:
        show: told how many of the catalog's items are done.
    """
    model = job.over(rows)
    prompts = [model.prompts.prompt(row) for row in rows]
    keys = [vector_key(model, prompt) for prompt in prompts]
    new = store.missing(keys)
    done, total = rows.stop - len(new), len(job.catalog)
    waiting: list[tuple[list[bytes], np.ndarray]] = []
    for chunk, vectors in prompt_vectors(model, [prompts[i] for i in new], job.config.encode):
        waiting.append(([keys[new[i]] for i in chunk], vectors))
        if sum(len(part) for part, _ in waiting) >= job.config.encode.shard_items:
            _write(store, waiting)
        done += len(chunk)
        show(done, total, "items")
    _write(store, waiting)
    show(rows.stop, total, "items")
    ids = {model.prompts.items[row].id for row in rows}
    damaged = {
        name: {item: reason for item, reason in inputs.damaged.items() if item in ids}
        for name, inputs in model.inputs.items()
    }
    return Window(rows, keys, Coverage.of(model, prompts), damaged)


def vector_key(model: AlignedModel, prompt: Prompt) -> bytes:
    """Digest of what a vector depends on beside `Job.key`: the prompt's tokens, and what goes into its slots."""
    digest = hashlib.sha256()
    for piece in prompt.pieces:
        if isinstance(piece, Slot):
            whose = "own" if piece.item == prompt.item else "related"
            digest.update(f"slot {piece.modality} {whose} {piece.keep}\n".encode())
            digest.update(model.inputs[piece.modality].encoded.digest(piece.item))
        else:
            digest.update(f"text {len(piece)}\n".encode() + array("q", piece).tobytes())
    return digest.digest()


def _write(store: VectorStore, waiting: list[tuple[list[bytes], np.ndarray]]) -> None:
    """Make a shard of what waits, if anything does."""
    if waiting:
        store.write([key for keys, _ in waiting for key in keys], np.concatenate([v for _, v in waiting]))
        waiting.clear()


def _state_digest(state: Mapping[str, Any]) -> str:
    """Of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(raw(values))
    return digest.hexdigest()
