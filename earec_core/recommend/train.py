"""Training of a recommender: Adam on the model's own loss, the epoch of the best validation NDCG@10 kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.artifacts import ItemVectors
from earec_core.catalog import LeaveOneOut, Sequences, random_part
from earec_core.config import RecommenderConfig
from earec_core.errors import DataError, UsageError
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
    widths: tuple[int, ...] = (),
    texts: ItemTexts | None = None,
    start: Mapping[str, Tensor] | None = None,
    progress: Callable[[EpochStats], None] = lambda _: None,
    checkpoint: Path | None = None,
    resumed: Callable[[int], None] = lambda _: None,
    device: str | torch.device = "cpu",
) -> TrainedRecommender:
    """Train with Adam until validation NDCG@10 has not risen for `patience` epochs; keep the best epoch.

    A model without parameters is as it was built: there are no epochs.

    Args:
        kind: which model, see `get_recommender`.
        split: training sequences and validation targets; test targets are not looked at.
        n_items: size of the catalog.
        vectors, texts: frozen item vectors or items' texts, for a model that needs them.
        widths: columns of each modality, where the vectors are several side by side.
        start: the tensors of another catalog's model to start from, see `RecommenderModel.transfer`; kept where no
            epoch is better.
        checkpoint: written after each epoch; a run that finds it goes on from there, to the same result.
        resumed: told how many epochs were done before, where there were any.

    Raises:
        DataError: no sequence has two items to learn from.
        UsageError: see `RecommenderModel.check` and `RecommenderModel.started`; there are no epochs and no start.
    """
    kind.check(vectors=vectors is not None, words=texts is not None)
    sequences = _part(split.train, config.train_users)
    counts = torch.from_numpy(np.bincount(sequences.items, minlength=n_items))
    items = Items(counts, vectors, widths, sequences=sequences, texts=texts)
    model = _model(kind, items, sequences, config, start).to(device)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        return TrainedRecommender(kind.name, model.eval())
    state = _fit(model, parameters, split, sequences, start is not None, progress, checkpoint, resumed)
    history = tuple(EpochStats(**epoch) for epoch in state.history)
    return TrainedRecommender(kind.name, model.eval().served().eval(), history, state.best_epoch)


def side_by_side(vectors: Sequence[ItemVectors]) -> Float[Tensor, "n d_in"]:
    """Item vectors, one at least, as `train` takes them."""
    tables = [torch.from_numpy(one.vectors) for one in vectors]
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)


def widths(vectors: Sequence[ItemVectors]) -> tuple[int, ...]:
    """The columns of each of them, or of each of their modalities."""
    return tuple(width for one in vectors for width in one.widths)


def _fit(
    model: Recommender,
    parameters: Mapping[str, nn.Parameter],
    split: LeaveOneOut,
    sequences: Sequences,
    started: bool,
    progress: Callable[[EpochStats], None],
    checkpoint: Path | None,
    resumed: Callable[[int], None],
) -> _Progress:
    """Train the parameters; at the end they are those of the best epoch."""
    config = model.config
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=config.lr, weight_decay=config.weight_decay)
    state, best = _Progress(), {name: p.detach().clone() for name, p in parameters.items()}
    restored = checkpoints.load(checkpoint, parameters, optimizer) if checkpoint else None
    if restored is not None:
        state, best = _Progress(**restored[0]), restored[1]
        resumed(state.epoch)
    # The users that epochs are compared on.
    users = split.eval_users[random_part(len(split.eval_users), config.valid_users, config.seed)]
    if config.epochs and started and restored is None:
        state.best = evaluate(model, split, "valid", users=users).ndcg(10)
    while state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience:
        begun = time.monotonic()
        state.epoch += 1
        loss = _epoch(model, optimizer, sequences, config, state.epoch)
        metrics = evaluate(model, split, "valid", users=users)
        stats = EpochStats(state.epoch, loss, metrics.ndcg(10), metrics.hr(10), time.monotonic() - begun)
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
    return state


def _model(
    kind: RecommenderModel,
    items: Items,
    sequences: Sequences,
    config: RecommenderConfig,
    start: Mapping[str, Tensor] | None,
) -> Recommender:
    """The model that a training begins with, after everything is checked; see `train`."""
    if not config.epochs and start is None:
        raise UsageError("With recommender.epochs = 0 nothing is learned.", "Give --from REF, or raise it.")
    if config.epochs and (not len(sequences.items) or np.diff(sequences.offsets).max() < 2):
        raise DataError("No user has two training interactions.", "Import a dataset with interactions.")
    torch.manual_seed(config.seed)
    return kind.build(config, items) if start is None else kind.started(config, items, start)


def _part(sequences: Sequences, share: float) -> Sequences:
    """The sequences of a random share of the users that have two items to learn from; the others' are empty.

    The users are the same whatever the seed of a training, and among those of any larger share.
    """
    if share == 1:
        return sequences
    lengths = np.diff(sequences.offsets)
    learned = np.flatnonzero(lengths >= 2)
    drawn = np.random.default_rng(0).permutation(learned)[: math.ceil(share * len(learned))]
    kept = np.zeros_like(lengths)
    kept[drawn] = lengths[drawn]
    items = sequences.items[np.repeat(kept > 0, lengths)]
    return Sequences(sequences.users, np.concatenate([[0], np.cumsum(kept)]), items)


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
    total, count, device = 0.0, 0, next(model.parameters()).device.type
    for windows in epoch_batches(sequences, config, rng):
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss, n = model.loss(windows)
        optimizer.zero_grad(set_to_none=True)
        (loss / n).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, count = total + loss.item(), count + n
    return total / max(count, 1)
