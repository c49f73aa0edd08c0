"""What a recommender is: items and users become vectors whose similarity is the score.

Symbols: b users of a batch, n items of the catalog, d the width of their vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError, one_line
from earec_core.recommend.tables.base import Items


class Recommender(nn.Module, ABC):
    """A model that the trainer fits, the evaluation ranks with and the index serves.

    Its parameters are what Adam trains; one without any is as it was built. Epochs, early stopping, checkpoints,
    evaluation and the index are not its business.

    Args:
        config: hyper-parameters; it reads those that it needs.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def loss(self, windows: Sequence[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
        """The loss of one batch, summed over its predictions, and their number.

        Args:
            windows: item rows of consecutive interactions of a user each, two at least and `max_len` + 1 at most;
                every item but a window's first is to be predicted once.
        """

    @abstractmethod
    def items(self) -> Float[Tensor, "n d"]:
        """Every item of the catalog."""

    @abstractmethod
    def users(
        self, histories: Sequence[Int[Tensor, " _"]], items: Float[Tensor, "n d"]
    ) -> Float[Tensor, "b d"]:
        """Users by what they did.

        Args:
            histories: item rows of each user in time order, one at least.
            items: `items()`, computed once for many calls.
        """

    @property
    def inner_product(self) -> bool:
        """Whether `scores` is `queries(users) @ keys(items).T`, as an index needs it; else all are scored."""
        return True

    def scores(self, users: Float[Tensor, "b d"], items: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
        """Score of every item for every user (the exponent of Eq. 8)."""
        if self.config.similarity == "cosine":
            return F.normalize(users, dim=-1) @ self.keys(items).T / self.config.temperature
        return users @ items.T

    def queries(self, users: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Users as an index by inner product is asked with them."""
        if self.config.similarity == "cosine":
            return F.normalize(users, dim=-1) / self.config.temperature
        return users

    def keys(self, items: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Items as an index by inner product holds them."""
        return F.normalize(items, dim=-1) if self.config.similarity == "cosine" else items

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Its parameters as Adam takes them, with an `lr` of their own where that is not the setting `lr`."""
        return [{"params": list(self.parameters())}]

    def served(self) -> Recommender:
        """What is evaluated and stored after the training; default: the model itself."""
        return self

    def to_store(self) -> dict[str, Tensor]:
        """The tensors that `RecommenderModel.load` needs; neither item vectors nor what scaled them."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def to_transfer(self) -> dict[str, Tensor]:
        """The tensors that `RecommenderModel.transfer` starts a model of another catalog from; by default none."""
        return {}


@dataclass(frozen=True)
class RecommenderModel:
    """A row of the table of recommenders.

    Attributes:
        name: what `--model` takes.
        summary: one line for a listing.
        needs_vectors: whether it is built on frozen item vectors; otherwise it takes none.
        build: a new model of a configuration for a catalog's items; its parameters are drawn from torch's global
            generator, which is seeded before.
        load: a model of a configuration and the tensors of its `to_store`. KeyError or RuntimeError where they do
            not belong together.
        transfer: a new model, as `build` makes it, that starts from the tensors of `to_transfer` of one that was
            trained on another catalog; RuntimeError where they do not fit. None: it cannot start from another.
        needs_words: whether it reads items' texts; otherwise it takes none.
        counts: whether it only counts, so that nothing is trained.
        resolved: the settings with those that the model fixes, as a trained one has them.
    """

    name: str
    summary: str
    needs_vectors: bool
    build: Callable[[RecommenderConfig, Items], Recommender]
    load: Callable[[RecommenderConfig, Mapping[str, Tensor]], Recommender]
    transfer: Callable[[RecommenderConfig, Items, Mapping[str, Tensor]], Recommender] | None = None
    needs_words: bool = False
    counts: bool = False
    resolved: Callable[[RecommenderConfig], RecommenderConfig] = lambda config: config

    @property
    def tunable(self) -> bool:
        """Whether many trials of other settings can be had: it learns, and no encoder along with it."""
        return not (self.needs_words or self.counts)

    def check(self, *, vectors: bool, words: bool = False) -> None:
        """Refuse item vectors or words that the model takes none of, or their absence where it needs them.

        Raises:
            UsageError: so it is.
        """
        if self.needs_vectors and not vectors:
            raise UsageError(
                f"The recommender {self.name!r} is built on item vectors.", "Give --vectors REF."
            )
        if vectors and not self.needs_vectors:
            raise UsageError(
                f"The recommender {self.name!r} takes no item vectors.",
                "Leave --vectors out, or choose another --model.",
            )
        if self.needs_words and not words:
            raise UsageError(f"The recommender {self.name!r} reads items' words.", "Give --modalities NAME.")
        if words and not self.needs_words:
            raise UsageError(
                f"The recommender {self.name!r} reads no words of items.",
                "Leave --modalities out, or choose another --model.",
            )

    def started(self, config: RecommenderConfig, items: Items, tensors: Mapping[str, Tensor]) -> Recommender:
        """A new model that starts from the tensors of another catalog's `to_transfer`.

        Raises:
            UsageError: no model of this row can, or the tensors do not fit it.
        """
        if self.transfer is None:
            raise UsageError(
                f"The recommender {self.name!r} cannot start from another catalog's.",
                "Leave --from out, or choose another --model.",
            )
        try:
            return self.transfer(config, items, tensors)
        except (KeyError, RuntimeError) as error:
            raise UsageError(
                f"The recommender {self.name!r} cannot start from one of other layers ({one_line(error)}).",
                "Start from one of the same model and settings.",
            ) from error
