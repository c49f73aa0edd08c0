"""What an item table is: a module that gives every item in the model's space.

Symbols: n items of the catalog, d the model's width, d_in that of frozen vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from earec_core.catalog import Sequences
from earec_core.config import RecommenderConfig
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.scaling import scaled
from earec_core.recommend.texts import ItemTexts


@dataclass(frozen=True)
class Items:
    """What a recommender knows of a catalog's items before it is trained.

    Attributes:
        counts: training interactions of each item [n].
        vectors: frozen vectors [n, d_in]; None: ids alone.
        sequences: what each user did in training; None where only items are at hand.
        texts: what an encoder of text reads of them; None for models that read no words.
    """

    counts: Int[Tensor, " n"]
    vectors: Float[Tensor, "n d_in"] | None = None
    sequences: Sequences | None = None
    texts: ItemTexts | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def known(self) -> Float[Tensor, "n d_in"]:
        """The vectors, for who `needs_vectors`."""
        assert self.vectors is not None  # noqa: S101 - see above
        return self.vectors

    def trained_on(self) -> Sequences:
        """The training sequences, for a model that counts what is in them."""
        assert self.sequences is not None  # noqa: S101 - `train` gives them
        return self.sequences

    def read(self) -> ItemTexts:
        """The texts, for who `needs_words`."""
        assert self.texts is not None  # noqa: S101 - see above
        return self.texts


class ItemTable(nn.Module, ABC):
    """Every item in the model's space: what a sequence model reads of it, and what it is scored against."""

    @abstractmethod
    def forward(self) -> Float[Tensor, "n d"]:
        """All items of the catalog."""


@dataclass(frozen=True)
class TableKind:
    """A row of the table of item tables.

    Attributes:
        name: what `recommender.table` takes.
        summary: one line for a listing.
        needs_vectors: whether it is built on frozen item vectors.
        build: a new table of a configuration for items; its parameters are drawn from torch's global generator.
    """

    name: str
    summary: str
    needs_vectors: bool
    build: Callable[[RecommenderConfig, Items], ItemTable]


class VectorTable(ItemTable):
    """What tables over frozen vectors have in common: the vectors, scaled, and dropout on them.

    The vectors are neither trained nor stored with the table.

    Args:
        config: `dim`, `scaling` and `table_dropout`.
        items: with vectors.
    """

    vectors: Tensor

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__()
        self.register_buffer("vectors", scaled(items.known(), config), persistent=False)
        self.dropout = Dropout(config.table_dropout)


def small(layer: nn.Linear) -> nn.Linear:
    """A layer whose outputs start at the size of trained ids (0.02) where its inputs have deviation 1."""
    nn.init.normal_(layer.weight, std=0.02 / layer.in_features**0.5)
    return layer


def drawn(p: float, n: int, device: torch.device) -> Float[Tensor, "n 1"]:
    """Which of n items stay where each is dropped with probability p: 1 or 0."""
    return (torch.rand(n, 1, device=device) >= p).float()
