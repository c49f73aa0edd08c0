"""A trained recommender, and how it is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError, one_line
from earec_core.recommend.indexes import FLAT, build_index, keys_of, write_index
from earec_core.recommend.models import get_recommender
from earec_core.recommend.models.base import Recommender

TENSORS, SETTINGS, INDEX = "model.safetensors", "config.json", "index.faiss"
TRANSFER = "transfer.safetensors"
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)
"""What the parts raise at settings and tensors that are not what they should be."""


@dataclass(frozen=True)
class EpochStats:
    """One epoch: its number from 1, mean loss per position, validation NDCG@10 and HR@10, seconds."""

    epoch: int
    loss: float
    ndcg10: float
    hr10: float
    seconds: float


@dataclass(frozen=True)
class TrainedRecommender:
    """A recommender at its best validation epoch.

    Attributes:
        name: which of the table of models it is.
        model: in evaluation mode.
        history: every epoch; empty for one that was loaded or has no parameters.
        best_epoch: the one kept; 0 where there is no history, or it is as it started.
    """

    name: str
    model: Recommender
    history: tuple[EpochStats, ...] = ()
    best_epoch: int = 0

    def item_embeddings(self) -> Float[np.ndarray, "n d"]:
        """Every item in the model's space."""
        with torch.inference_mode():
            embeddings: np.ndarray = self.model.items().cpu().numpy()
        return embeddings.copy()

    def save(self, folder: Path) -> None:
        """Write the model's tensors, its name and settings, and the index of its items where it can have one.

        Recommending then needs neither the item vectors nor what scaled them. What a model of another catalog
        starts from, if there is such, is a file of its own.
        """
        for file, tensors in ((TENSORS, self.model.to_store()), (TRANSFER, self.model.to_transfer())):
            if tensors:
                named = {name: tensor.cpu().contiguous() for name, tensor in sorted(tensors.items())}
                save_file(named, folder / file)
        settings = {"model": self.name, **self.model.config.model_dump(mode="json")}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True))
        if self.model.inner_product:
            index = build_index(keys_of(self.model, self.model.items()), FLAT)
            write_index(index.faiss, folder / INDEX)

    @classmethod
    def load(cls, folder: Path) -> TrainedRecommender:
        """Read what `save` wrote.

        Raises:
            UsageError: it was made by a version whose settings or layers were others, or its model is not there.
        """
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            # Before there were others, every stored one was the transformer over a stored table, as SASRec is.
            kind = get_recommender(settings.pop("model", "sasrec"))
            model = kind.load(RecommenderConfig(**settings), load_file(folder / TENSORS))
        except _UNREADABLE as error:
            raise UsageError(
                f"The recommender in {folder} was made by another version of earec ({one_line(error)}).",
                "Train it again: earec recommend train.",
            ) from error
        return cls(kind.name, model.eval())
