"""Training of a recommender: Adam on the model's own loss, the epoch of the best validation NDCG@10 kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from earec_core.catalog import LeaveOneOut, Sequences, random_part
from earec_core.config import RecommenderConfig
from earec_core.errors import DataError
from earec_core.recommend.batches import epoch_batches
from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.models.base import Recommender, RecommenderModel
from earec_core.recommend.tables import Items
from earec_core.recommend.texts import ItemTexts
from earec_core.recommend.trained import EpochStats, TrainedRecommender
from earec_core.train import checkpoint as checkpoints


@dataclass
class _Progress:
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    kind: RecommenderModel,
    split: LeaveOneOut,
    n_items: int,
    config: RecommenderConfig,
    *,
    vectors: Float[Tensor, "n d_in"] | None = None,
    texts: ItemTexts | None = None,
    progress: Callable[[EpochStats], None] = lambda _: None,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> TrainedRecommender:
    """Train with Adam until validation NDCG@10 has not risen for `patience` epochs; keep the best epoch.

    A model without parameters is as it was built: there are no epochs.

    Args:
        kind: which model, see `get_recommender`.
        split: training sequences and validation targets; test targets are not looked at.
        n_items: size of the catalog.
        vectors, texts: frozen item vectors or items' texts, for a model that needs them.
        checkpoint: written after each epoch; a run that finds it goes on from there, to the same result.

    Raises:
        DataError: no sequence has two items to learn from.
        UsageError: see `RecommenderModel.check`.
    """
    kind.check(vectors=vectors is not None, words=texts is not None)
    if not len(split.train.items) or np.diff(split.train.offsets).max() < 2:
        raise DataError("No user has two training interactions.", "Import a dataset with interactions.")
    torch.manual_seed(config.seed)
    counts = torch.from_numpy(np.bincount(split.train.items, minlength=n_items))
    model = kind.build(config, Items(counts, vectors, split.train, texts)).to(device)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        return TrainedRecommender(kind.name, model.eval())
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=config.lr, weight_decay=config.weight_decay)
    state, best = _Progress(), {name: p.detach().clone() for name, p in parameters.items()}
    if checkpoint and (restored := checkpoints.load(checkpoint, parameters, optimizer)):
        state, best = _Progress(**restored[0]), restored[1]
    # The users that epochs are compared on.
    users = split.eval_users[random_part(len(split.eval_users), config.valid_users, config.seed)]
    while state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience:
        started = time.monotonic()
        state.epoch += 1
        loss = _epoch(model, optimizer, split.train, config, state.epoch)
        metrics = evaluate(model, split, "valid", users=users)
        stats = EpochStats(state.epoch, loss, metrics.ndcg(10), metrics.hr(10), time.monotonic() - started)
        state.history.append(asdict(stats))
        if stats.ndcg10 > state.best:
            state.best, state.best_epoch = stats.ndcg10, state.epoch
            best = {name: p.detach().clone() for name, p in parameters.items()}
        if checkpoint is not None:
            states = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
            checkpoints.save(checkpoint, parameters, states, asdict(state), best)
        progress(stats)
    for name, tensor in best.items():
        parameters[name].data.copy_(tensor)
    history = tuple(EpochStats(**epoch) for epoch in state.history)
    return TrainedRecommender(kind.name, model.eval().served().eval(), history, state.best_epoch)


def _epoch(
    model: Recommender,
    optimizer: torch.optim.Optimizer,
    sequences: Sequences,
    config: RecommenderConfig,
    epoch: int,
) -> float:
    """Fit every batch of an epoch once; mean loss per prediction."""
    model.train()
    # Dropout's masks follow from the epoch, so that a resumed run draws the same.
    torch.manual_seed(config.seed * 1_000_003 + epoch)
    rng = np.random.default_rng((config.seed, epoch))
    total, count = 0.0, 0
    for windows in epoch_batches(sequences, config, rng):
        loss, n = model.loss(windows)
        optimizer.zero_grad(set_to_none=True)
        (loss / n).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, count = total + loss.item(), count + n
    return total / max(count, 1)
