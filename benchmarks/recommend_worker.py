"""One contestant of `benchmarks/recommend.py` and `sasrec_parity.py`, in a process of its own: SASRec on ids.

It imports the standard library and its own contestant's library, so that it also runs in RecBole's and RecTools'
environments. Sizes are RecBole's defaults for all. After each epoch the validation targets are ranked in full.
Seconds are the processor's, of training alone. Prints a JSON object:

- `prepare_s`: what it took to read the data and build the model.
- `valid`: NDCG@10 of each epoch; `seconds`: of all epochs until then.
- `test`: `hr@10` and `ndcg@10` of the best epoch.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

LAYERS, HEADS, WIDTH, INNER, DROPOUT, LR, MAX_LEN, BATCH = 2, 2, 64, 256, 0.5, 1e-3, 50, 2048
"""RecBole predicts BATCH items a step, each from a sequence of its own; EAREC as many positions of sequences."""
Settings = dict[str, int]
"""`epochs` at most, `patience` in epochs without a better NDCG@10, `seed`."""


class Trace:
    """NDCG@10 and seconds of training by epoch."""

    def __init__(self) -> None:
        self.started = self.resumed = time.process_time()
        self.prepare = self.trained = 0.0
        self.valid: list[float] = []
        self.seconds: list[float] = []

    def prepared(self) -> None:
        """Training begins."""
        self.resumed = time.process_time()
        self.prepare = self.resumed - self.started

    def without(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds not counted."""

        def called(*given: Any, **named: Any) -> Any:
            self.trained += time.process_time() - self.resumed
            found = function(*given, **named)
            self.resumed = time.process_time()
            return found

        return called

    def epoch(self, ndcg: float) -> bool:
        """Note an epoch that was validated; whether it is the best so far."""
        self.valid.append(ndcg)
        self.seconds.append(self.trained)
        return len(self.valid) - 1 == self.best

    @property
    def best(self) -> int:
        """The first of the epochs with the highest NDCG@10, from 0."""
        return self.valid.index(max(self.valid))

    def ended(self, settings: Settings) -> bool:
        """Whether training stops after this epoch."""
        done = len(self.valid)
        return done >= settings["epochs"] or done - 1 - self.best >= settings["patience"]


def earec(folder: Path, settings: Settings, trace: Trace) -> dict[str, float]:
    """EAREC's `sasrec`, by its own trainer; test figures."""
    import earec_core.recommend  # noqa: F401 - the module of the same name as its function
    from earec_core.catalog import Catalog
    from earec_core.config import RecommenderConfig
    from earec_core.recommend import MODELS, TrainedRecommender, evaluate

    module = sys.modules["earec_core.recommend.train"]
    module.evaluate = trace.without(evaluate)  # type: ignore[attr-defined]
    catalog = Catalog.open(folder / "catalog")
    config = RecommenderConfig(
        layers=LAYERS,
        heads=HEADS,
        dim=WIDTH,
        inner=INNER,
        dropout=DROPOUT,
        lr=LR,
        max_len=MAX_LEN,
        batch_size=BATCH,
        epochs=settings["epochs"],
        patience=settings["patience"],
        seed=settings["seed"],
    )
    split, length = catalog.leave_one_out(), len(catalog)
    trace.prepared()
    trained: TrainedRecommender = module.train(
        MODELS["sasrec"], split, length, config, progress=lambda stats: trace.epoch(stats.ndcg10)
    )
    metrics = evaluate(trained.model, split, "test")
    return {"hr@10": metrics.hr(10), "ndcg@10": metrics.ndcg(10)}


def recbole(folder: Path, settings: Settings, trace: Trace) -> dict[str, float]:
    """RecBole's SASRec with its defaults, by its own trainer, on the split that EAREC exported; test figures."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    told = {
        "data_path": str(folder / "recbole"),
        "epochs": settings["epochs"],
        "stopping_step": settings["patience"] - 1,
        "seed": settings["seed"],
        "train_batch_size": BATCH,
        "topk": [10],
        "metric_decimal_place": 12,
        "show_progress": False,
    }
    config = Config("SASRec", "movielens", [folder / "recbole/movielens/settings.yaml"], told)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    trainer.evaluate = trace.without(trainer.evaluate)
    best = model.state_dict()

    def keep(_: int, ndcg: float) -> None:
        nonlocal best
        if trace.epoch(ndcg):
            best = deepcopy(model.state_dict())

    trace.prepared()
    trainer.fit(train, valid, saved=False, verbose=False, callback_fn=keep)
    model.load_state_dict(best)
    found = trainer.evaluate(test, load_best_model=False)
    return {"hr@10": float(found["hit@10"]), "ndcg@10": float(found["ndcg@10"])}


def rectools(folder: Path, settings: Settings, trace: Trace) -> dict[str, float]:
    """RecTools' SASRec with its own batches, on the split that EAREC exported; test figures.

    Its feed-forward layers are as wide as the model, and it trains on each user's last items alone. A target that
    training has not counts as missed.
    """
    import pandas as pd  # type: ignore[import-untyped]
    from pytorch_lightning import seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.metrics import NDCG, HitRate, calc_metrics
    from rectools.models import SASRecModel

    seed_everything(settings["seed"])
    parts = [pd.read_parquet(folder / f"rectools/{part}.parquet") for part in ("train", "valid", "test")]
    metrics = {"hr@10": HitRate(k=10), "ndcg@10": NDCG(k=10, divide_by_achievable=True)}
    known = [Dataset.construct(parts[0]), Dataset.construct(pd.concat(parts[:2]))]

    def figures(part: int) -> dict[str, float]:
        users = parts[part][Columns.User].unique()
        ranked = model.recommend(users, known[part - 1], k=10, filter_viewed=False)
        return calc_metrics(metrics, ranked, interactions=parts[part])

    model = SASRecModel(
        n_blocks=LAYERS,
        n_heads=HEADS,
        n_factors=WIDTH,
        dropout_rate=DROPOUT,
        lr=LR,
        session_max_len=MAX_LEN,
        deterministic=True,
    )
    trace.prepared()
    validate, best = trace.without(figures), None
    while best is None or not trace.ended(settings):
        model.fit_partial(known[0], min_epochs=1, max_epochs=1)
        if trace.epoch(validate(1)["ndcg@10"]):
            best = deepcopy(model.lightning_model.torch_model.state_dict())
    model.lightning_model.torch_model.load_state_dict(best)
    return figures(2)


CONTESTANTS = {"earec": earec, "recbole": recbole, "rectools": rectools}


def main() -> None:
    name, folder, settings = sys.argv[1], Path(sys.argv[2]).resolve(), json.loads(sys.argv[3])
    sys.argv[1:] = []  # RecBole would take them for its own
    trace = Trace()
    # RecBole and RecTools leave folders for logs where they run.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        test = CONTESTANTS[name](folder, settings, trace)
    figures = {"prepare_s": trace.prepare, "valid": trace.valid, "seconds": trace.seconds, "test": test}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
