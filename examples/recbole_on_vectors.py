"""RecBole's SASRec over EAREC's item vectors, in RecBole's environment (benchmarks/recbole-requirements.txt).

    earec data export movies --format recbole --vectors vectors/movies --out recbole/movies
    python examples/recbole_on_vectors.py recbole/movies

The vectors stay as they are (RecBole's `preload_weight`); a linear map in place of the embedding by id is trained
with the rest of the model. Prints validation and test figures as JSON, ranked in full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import recbole  # type: ignore[import-not-found]
import torch
from recbole.config import Config  # type: ignore[import-not-found]
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
from recbole.model.sequential_recommender import SASRec  # type: ignore[import-not-found]
from recbole.trainer import Trainer  # type: ignore[import-not-found]
from recbole.utils import init_seed  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULTS = Path(recbole.__file__).parent / "properties/model/SASRec.yaml"


class VectorEmbedding(nn.Module):
    """Items from frozen vectors through a linear map, where `nn.Embedding` would be; row 0 is RecBole's padding."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5)
        self.map = nn.Linear(vectors.shape[1], width)

    @property
    def weight(self) -> Tensor:
        return self.map(self.vectors)

    def forward(self, items: Tensor) -> Tensor:
        return F.embedding(items, self.weight, padding_idx=0)


class VectorSASRec(SASRec):  # type: ignore[misc]
    """SASRec whose items are vectors."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        vectors = torch.as_tensor(dataset.get_preload_weight("vector_id"), dtype=torch.float32)
        self.item_embedding = VectorEmbedding(vectors, self.hidden_size)
        self._init_weights(self.item_embedding.map)


def train(folder: Path, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Train on a folder that `earec data export` wrote; figures by part, at the best validation epoch."""
    folder = folder.resolve()
    given = {
        "data_path": str(folder.parent),
        "epochs": epochs,
        "seed": seed,
        "show_progress": False,
        "metric_decimal_place": 6,
    }
    config = Config(VectorSASRec, folder.name, [DEFAULTS, folder / "settings.yaml"], given)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    parts = data_preparation(config, dataset)
    model = VectorSASRec(config, dataset)
    best = (0.0, deepcopy(model.state_dict()))

    def keep(_: int, score: float) -> None:
        nonlocal best
        if score > best[0]:
            best = score, deepcopy(model.state_dict())

    trainer = Trainer(config, model)
    # RecBole's own checkpoints are pickles that torch's `weights_only` refuses.
    trainer.fit(parts[0], parts[1], saved=False, callback_fn=keep)
    model.load_state_dict(best[1])
    return {
        part: dict(trainer.evaluate(data, load_best_model=False))
        for part, data in zip(("valid", "test"), parts[1:], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `earec data export --format recbole` wrote")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.argv[1:] = []  # RecBole would take them for its own
    folder = options.folder.resolve()
    # RecBole leaves folders for logs and checkpoints where it runs.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        print(json.dumps(train(folder, options.epochs, options.seed), indent=1))


if __name__ == "__main__":
    main()
