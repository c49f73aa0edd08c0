"""RecBole's figures for `recbole.json`, in RecBole's environment (benchmarks/recbole-requirements.txt).

    PYTHON tests/golden/recbole_side.py FOLDER

`record_recbole.py` runs it. It imports nothing of EAREC's. Prints a JSON object with

- `metrics`: what RecBole's collector and metric classes make of `scores()`.
- `evaluation`: what RecBole's own reading, batches and evaluation make of the exported FOLDER, by a model without
  training: a user is the sum of the vectors of the items in the history, each further back weighing 0.8 as much,
  and a score their inner product with an item's vector.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

KS = [10, 50]
WEIGHT = 0.8


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Scores of 200 users for 300 items [200 300], no two of a user the same, and the users' targets [200].

    The more the later a user is in the table, the better targets score, so that hits at 10 and at 50 are many.
    """
    rng = np.random.default_rng(7)
    found, targets = rng.random((200, 300)), rng.integers(0, 300, 200)
    found[np.arange(200), targets] += np.linspace(0, 0.5, 200)
    return found, targets


def _metrics() -> dict[str, float]:
    import torch
    from recbole.config import Config  # type: ignore[import-not-found]
    from recbole.evaluator import Collector, Evaluator  # type: ignore[import-not-found]

    config = Config("SASRec", "none", config_dict=_told())
    found, targets = (torch.from_numpy(array) for array in scores())
    collector = Collector(config)
    collector.eval_batch_collect(found, None, torch.arange(len(targets)), targets)
    return {
        name: float(value) for name, value in Evaluator(config).evaluate(collector.get_data_struct()).items()
    }


def _told() -> dict[str, Any]:
    # The loss says that nothing is sampled.
    return {
        "metrics": ["Hit", "NDCG"],
        "topk": KS,
        "metric_decimal_place": 12,
        "valid_metric": "NDCG@10",
        "loss_type": "CE",
        "train_neg_sample_args": None,
    }


def _evaluation(folder: Path) -> dict[str, dict[str, float]]:
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
    from recbole.model.abstract_recommender import SequentialRecommender  # type: ignore[import-not-found]
    from recbole.trainer import Trainer  # type: ignore[import-not-found]

    class Faded(SequentialRecommender):  # type: ignore[misc]
        """The model that is described above."""

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            vectors = torch.as_tensor(dataset.get_preload_weight("vector_id"), dtype=torch.float32)
            self.vectors = torch.nn.Parameter(vectors)

        def full_sort_predict(self, interaction: Any) -> torch.Tensor:
            items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
            back = lengths[:, None] - 1 - torch.arange(items.shape[1])
            weights = torch.where(back >= 0, WEIGHT ** back.clamp(min=0).float(), 0.0)
            users = (weights[..., None] * self.vectors[items]).sum(1)
            return users @ self.vectors.T

    told = {**_told(), "data_path": str(folder.parent), "eval_batch_size": 7, "show_progress": False}
    config = Config(Faded, folder.name, [folder / "settings.yaml"], told)
    dataset = create_dataset(config)
    parts = data_preparation(config, dataset)
    trainer = Trainer(config, Faded(config, dataset))
    return {
        part: {name: float(value) for name, value in trainer.evaluate(data, load_best_model=False).items()}
        for part, data in zip(("valid", "test"), parts[1:], strict=True)
    }


def main() -> None:
    folder = Path(sys.argv.pop()).resolve()
    # RecBole leaves folders for logs and checkpoints where it runs.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        found = {"metrics": _metrics(), "evaluation": _evaluation(folder)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
