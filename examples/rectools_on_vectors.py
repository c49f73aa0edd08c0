"""RecTools' SASRec over EAREC's item vectors, in RecTools' environment (benchmarks/rectools-requirements.txt).

    earec data export movies --format rectools --vectors vectors/movies --out tables
    python examples/rectools_on_vectors.py tables

RecTools' own item networks take ids and categories; this one takes the vectors as they are and trains a linear map
of them. Prints validation and test figures as JSON. RecTools ranks the items that training has: a target that is
none of them counts as missed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Self

import pandas as pd  # type: ignore[import-untyped]
import torch
from pytorch_lightning import seed_everything  # type: ignore[import-not-found]
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.metrics import NDCG, HitRate, calc_metrics  # type: ignore[import-not-found]
from rectools.models import SASRecModel  # type: ignore[import-not-found]
from rectools.models.nn.item_net import ItemNetBase  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F

METRICS = {f"hr@{k}": HitRate(k=k) for k in (10, 50)} | {
    f"ndcg@{k}": NDCG(k=k, divide_by_achievable=True) for k in (10, 50)
}


class VectorItemNet(ItemNetBase):  # type: ignore[misc]
    """Items from frozen vectors through a linear map; row 0 is RecTools' padding."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5)
        self.map = nn.Linear(vectors.shape[1], width, bias=False)

    @classmethod
    def from_dataset(cls, dataset: Any, n_factors: int, dropout_rate: float, **_: Any) -> Self:
        return cls(torch.from_numpy(dataset.item_features.get_dense()), n_factors)

    def forward(self, items: Tensor) -> Tensor:
        mapped: Tensor = self.map(self.vectors[items])
        return mapped

    @property
    def out_dim(self) -> int:
        return self.map.out_features


def train(folder: Path, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Train on a folder that `earec data export` wrote; figures by part."""
    seed_everything(seed)
    parts = {part: pd.read_parquet(folder / f"{part}.parquet") for part in ("train", "valid", "test")}
    features = pd.read_parquet(folder / "item_features.parquet")
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=50,
        dropout_rate=0.5,
        epochs=epochs,
        item_net_block_types=(VectorItemNet,),
        deterministic=True,
    )
    model.fit(Dataset.construct(parts["train"], item_features_df=features, make_dense_item_features=True))
    known, figures = parts["train"], {}
    for part in ("valid", "test"):
        past = Dataset.construct(known, item_features_df=features, make_dense_item_features=True)
        users = parts[part][Columns.User].unique()
        ranked = model.recommend(users, past, k=50, filter_viewed=False)
        figures[part] = calc_metrics(METRICS, ranked, interactions=parts[part])
        known = pd.concat([known, parts[part]])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `earec data export --format rectools` wrote")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(train(options.folder, options.epochs, options.seed), indent=1))


if __name__ == "__main__":
    main()
