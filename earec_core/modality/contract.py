"""The plugin contract: what a modality is, with shapes.

A plugin brings a `ModalitySpec` (`earec_core.plugins.spec`), a frozen pydantic config and a subclass of `Modality`.
Data goes one way:

    item --read--> raw --Encoder--> Encoded (b t d_enc) --Projector--> Encoded (b k d_llm) --> prompt slot

Symbols: b items of a batch, t encoder tokens, k slot positions, d_enc and d_llm the two widths.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from earec_core.config import LoraSettings
from earec_core.types import Item


class Encoded(NamedTuple):
    """A batch of embeddings; positions where `mask` is False are padding and hold zeros."""

    h: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


class PluginConfig(BaseModel):
    """Base of a plugin's configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@runtime_checkable
class LanguageModel(Protocol):
    """What an encoder may use of the LLM."""

    tokenizer: Any
    word_embedding: nn.Embedding
    d_llm: int


@dataclass(frozen=True)
class Context:
    """Where a modality finds what it needs beyond an item's fields.

    Attributes:
        catalog: name of the catalog at hand.
        registry: folder of the model registry.
        home: EAREC's home; what a modality downloads is kept in its `downloads`.
        titles: asked for items by their ids, gives the titles of those that the catalog has (since 2.2), for
            `describe`.
    """

    catalog: str = ""
    registry: Path | None = None
    home: Path | None = None
    titles: Callable[[Sequence[str]], Mapping[str, str]] = lambda _: {}


class Encoder(nn.Module, ABC):
    """Turns raw inputs into embeddings; frozen (`MoEnc` of Eq. 1).

    Attributes:
        d_enc: width of what it returns.
    """

    d_enc: int

    @abstractmethod
    def forward(self, batch: Sequence[Any]) -> Encoded:
        """Embed a batch of raw inputs.

        Args:
            batch: b raw inputs as `Modality.read` returned them.

        Returns:
            h (b t d_enc) and its mask; row i depends on `batch[i]` alone.
        """


class Projector(nn.Module, ABC):
    """Maps an encoder's output into the LLM's embedding space; trained (`MoProj` of Eq. 1)."""

    @abstractmethod
    def forward(self, x: Encoded) -> Encoded:
        """Project (b t d_enc) to (b k d_llm), with the mask of the k slot positions."""

    def calibrate(self, x: Encoded, rms: float) -> None:
        """Called once before training with some encoded items and the root mean square of the LLM's word
        embeddings: a projector whose output starts at that size trains in fewer steps."""


Config = TypeVar("Config", bound=PluginConfig)


class Modality(ABC, Generic[Config]):
    """One modality of items.

    Args:
        config: the plugin's validated configuration.
        context: the catalog's name, the registry's folder, EAREC's home.
    """

    def __init__(self, config: Config, context: Context) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def read(self, item: Item) -> Any | None:
        """The raw input of one item: str, bytes or numpy array.

        `item.fields` has the catalog's columns; `item.path(name)` is the file that a field names.

        Returns:
            None for an item that lacks this modality.

        Raises:
            DamagedInputError: it is there and cannot be read; the item is skipped, counted and named.
        """

    @abstractmethod
    def build_encoder(self, llm: LanguageModel) -> Encoder:
        """The encoder, frozen and in evaluation mode."""

    @abstractmethod
    def build_projector(self, d_enc: int, d_llm: int) -> Projector:
        """A new projector, initialised from torch's global generator."""

    @abstractmethod
    def positions(self) -> int:
        """The most positions that one item takes in a prompt (k)."""

    @abstractmethod
    def describe(self, item: Item) -> str:
        """How a report shows the item's raw input: plain text, or a `data:` address of an image."""

    def words(self, item: Item) -> str:
        """The words of an item that the LLM reads as they are, uncut; empty where it reads none.

        What of an anchor stands in them can be copied, and is told apart from what the model knows.
        """
        return ""

    @property
    def cache_features(self) -> bool:
        """Whether encoder outputs are kept on disk; False where encoding is as cheap as reading a cache (text)."""
        return True

    @property
    def may_shorten(self) -> bool:
        """Whether an item's slot still says something when positions are cut off its end (text does)."""
        return False

    def adapter_config(self, settings: LoraSettings) -> LoraSettings:
        """The LoRA that this modality is aligned with.

        Args:
            settings: the run's.

        Returns:
            Those, or others in rank, alpha or dropout. Never another seed: adapters that are to be composed start
            from one A.
        """
        return settings

    def resolved_config(self) -> Config:
        """The configuration to store with a model: names that may come to mean something else made exact."""
        return self.config

    def sources(self) -> tuple[str, ...]:
        """Ids of the registry's artifacts that the encoder reads; they are kept as long as the model is."""
        return ()

    @classmethod
    def examples(cls, folder: Path) -> tuple[Config, Sequence[Item]] | None:
        """A few items that have this modality, for the conformance kit (`earec plugins check NAME`).

        Args:
            folder: an empty folder for the files that configuration or items name.

        Returns:
            The configuration that reads them and at least three items whose inputs differ, in length too if
            lengths can; their fields as a catalog has them. None: the kit asks for them.
        """
        return None

    def fingerprint(self) -> str:
        """What, beside the raw inputs, the encoder's output depends on; part of the feature cache's key.

        Default: the configuration. Add the weights' identity where a path alone does not fix it.
        """
        return self.config.model_dump_json()


def content_digest(raw: str | bytes | Any) -> bytes:
    """SHA-256 of a raw input: its bytes, and for an array its shape and type as well."""
    if isinstance(raw, str):
        return hashlib.sha256(b"s" + raw.encode()).digest()
    if isinstance(raw, bytes):
        return hashlib.sha256(b"b" + raw).digest()
    header = f"a{raw.dtype}{raw.shape}".encode()
    return hashlib.sha256(header + raw.tobytes()).digest()


def pad(rows: Sequence[Float[Tensor, "_ d"]]) -> Encoded:
    """Stack rows of different lengths, zeros behind; for encoders and feature stores."""
    h = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=h.device)
    return Encoded(h, torch.arange(h.shape[1], device=h.device)[None] < lengths[:, None])
