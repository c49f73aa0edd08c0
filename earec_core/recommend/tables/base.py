"""What an item table is: a module that gives every item in the model's space.

Symbols: n items of the catalog, d the model's width, d_in that of frozen vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from earec_core.catalog import Sequences
from earec_core.config import RecommenderConfig
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.scaling import Scaling, fitted
from earec_core.recommend.texts import ItemTexts


@dataclass(frozen=True)
class Items:
    """What a recommender knows of a catalog's items before it is trained.

    Attributes:
        counts: training interactions of each item [n].
        vectors: frozen vectors [n, d_in]; None: ids alone.
        widths: columns of each modality, where the vectors are several side by side; default: they are one.
        scaling: what scales the vectors; None: it is fitted to them.
        sequences: what each user did in training; None where only items are at hand.
        texts: what an encoder of text reads of them; None for models that read no words.
    """

    counts: Int[Tensor, " n"]
    vectors: Float[Tensor, "n d_in"] | None = None
    widths: tuple[int, ...] = ()
    scaling: Scaling | None = None
    sequences: Sequences | None = None
    texts: ItemTexts | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def known(self) -> Float[Tensor, "n d_in"]:
        """The vectors, for who `needs_vectors`."""
        assert self.vectors is not None  # noqa: S101 - see above
        return self.vectors

    def modalities(self) -> tuple[Float[Tensor, "n _"], ...]:
        """The vectors of each modality, for who `needs_vectors`; a row of zeros is an item without it."""
        vectors = self.known()
        return torch.split(vectors, list(self.widths) or vectors.shape[1], dim=1)

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

    def some(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        """Some items of the catalog: `self()[rows]`, unless a table can do with less work."""
        items: Tensor = self()
        return items[rows]

    def to_transfer(self) -> dict[str, Tensor]:
        """What the table of another catalog starts from; none: nothing of it is good for other items."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from the tensors of another table's `to_transfer`.

        Raises:
            RuntimeError: they are not those of such a table.
        """
        self.load_state_dict(dict(tensors))


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


_SCALING = "scaling."


class VectorTable(ItemTable):
    """What tables over frozen vectors have in common: the vectors, scaled, and dropout on them.

    Each item is mapped by itself. The vectors are neither trained nor stored with the table. What scaled them goes
    to another catalog's table and scales its vectors: the map was trained behind it, and a scaling fitted anew has
    other axes and sizes.

    Args:
        config: `dim`, `scaling` and `table_dropout`.
        items: with vectors.
    """

    vectors: Tensor

    def __init__(self, config: RecommenderConfig, items: Items) -> None:
        super().__init__()
        self.scaling = items.scaling or fitted(items.known(), config)
        self.register_buffer("vectors", self.scaling(items.known()), persistent=False)
        self.dropout = Dropout(config.table_dropout)

    @abstractmethod
    def map(self, vectors: Float[Tensor, "k d_in"]) -> Float[Tensor, "k d"]:
        """Items by their scaled vectors."""

    def forward(self) -> Float[Tensor, "n d"]:
        return self.map(self.vectors).float()

    def some(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        return self.map(self.vectors[rows]).float()

    def to_transfer(self) -> dict[str, Tensor]:
        scaling = {f"{_SCALING}{name}": tensor for name, tensor in self.scaling.to_store().items()}
        return {**super().to_transfer(), **scaling}

    def transfer_from(self, tensors: Mapping[str, Tensor]) -> None:
        super().transfer_from({name: t for name, t in tensors.items() if not name.startswith(_SCALING)})


def transferred_scaling(tensors: Mapping[str, Tensor]) -> Scaling:
    """What scaled the vectors of the table whose `to_transfer` these are."""
    return Scaling(**{field.name: tensors.get(f"{_SCALING}{field.name}") for field in fields(Scaling)})


def small(layer: nn.Linear) -> nn.Linear:
    """A layer whose outputs start at the size of trained ids (0.02) where its inputs have deviation 1."""
    nn.init.normal_(layer.weight, std=0.02 / layer.in_features**0.5)
    return layer


def drawn(p: float, n: int, device: torch.device) -> Float[Tensor, "n 1"]:
    """Which of n items stay where each is dropped with probability p: 1 or 0."""
    return (torch.rand(n, 1, device=device) >= p).float()
