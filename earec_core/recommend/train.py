"""Training of the recommender: all positions of a sequence at once, full softmax over the catalog (Eq. 8)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.catalog import LeaveOneOut, Sequences
from earec_core.config import RecommenderConfig
from earec_core.errors import DataError, UsageError
from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.model import IdTable, ItemTable, SequenceModel, VectorTable
from earec_core.train import checkpoint as checkpoints


@dataclass(frozen=True)
class EpochStats:
    """One epoch: its number from 1, mean loss per position, validation NDCG@10 and HR@10, seconds."""

    epoch: int
    loss: float
    ndcg10: float
    hr10: float
    seconds: float


@dataclass
class _Progress:
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedRecommender:
    """A recommender at its best validation epoch.

    Attributes:
        model: transformer and item table, in evaluation mode.
        config: its hyper-parameters.
        history: every epoch.
        best_epoch: the one kept.
    """

    model: SequenceModel
    config: RecommenderConfig
    history: tuple[EpochStats, ...]
    best_epoch: int

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`.

        The items are stored as the model reads and scores them (n dim), so that recommending needs neither the
        vectors nor what scaled them.
        """
        state = {k: v.detach() for k, v in self.model.state_dict().items() if not k.startswith("table.")}
        with torch.inference_mode():
            state["table.embedding"] = self.model.table()
        save_file({k: v.cpu().contiguous() for k, v in sorted(state.items())}, folder / "model.safetensors")
        settings = self.config.model_dump(mode="json")
        (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> TrainedRecommender:
        """Read what `save` wrote.

        Raises:
            UsageError: it was made by a version whose settings or layers were others.
        """
        state = load_file(folder / "model.safetensors")
        try:
            config = RecommenderConfig(**json.loads((folder / "config.json").read_text()))
            model = SequenceModel(IdTable(len(state["table.embedding"]), config.dim), config)
            model.load_state_dict(state)
        except (ValidationError, RuntimeError, KeyError) as error:
            raise UsageError(
                f"The recommender in {folder} was made by another version of earec.",
                "Train it again: earec recommend train.",
            ) from error
        return cls(model.eval(), config, (), 0)


def make_table(vectors: Float[Tensor, "n d_in"] | None, n_items: int, config: RecommenderConfig) -> ItemTable:
    """A table of trained ids, or of the frozen vectors given."""
    if vectors is None:
        return IdTable(n_items, config.dim)
    return VectorTable(vectors, config.dim, scaling=config.scaling)


def item_embeddings(trained: TrainedRecommender) -> Float[np.ndarray, "n d"]:
    """Every item in the model's space."""
    with torch.inference_mode():
        table: np.ndarray = trained.model.table().cpu().numpy()
    return table.copy()


def train(
    split: LeaveOneOut,
    n_items: int,
    config: RecommenderConfig,
    *,
    vectors: Float[Tensor, "n d_in"] | None = None,
    progress: Callable[[EpochStats], None] = lambda _: None,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> TrainedRecommender:
    """Train with Adam until validation NDCG@10 has not risen for `patience` epochs; keep the best epoch.

    Args:
        split: training sequences and validation targets; test targets are not looked at.
        n_items: size of the catalog.
        vectors: frozen item vectors; None trains an embedding per id (SASRec).
        checkpoint: written after each epoch; a run that finds it goes on from there, to the same result.

    Raises:
        DataError: no sequence has two items to learn from.
    """
    if not len(split.train.items) or np.diff(split.train.offsets).max() < 2:
        raise DataError("No user has two training interactions.", "Import a dataset with interactions.")
    torch.manual_seed(config.seed)
    model = SequenceModel(make_table(vectors, n_items, config), config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    parameters = dict(model.named_parameters())
    state, best = _Progress(), {name: p.detach().clone() for name, p in parameters.items()}
    restored = checkpoints.load(checkpoint, parameters, optimizer) if checkpoint else None
    if restored is not None:
        state, best = _Progress(**restored[0]), restored[1]
    users = split.eval_users
    if config.valid_users is not None and len(users) > config.valid_users:
        users = np.sort(np.random.default_rng(config.seed).choice(users, config.valid_users, replace=False))
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
            checkpoints.save(checkpoint, parameters, optimizer, asdict(state), best)
        progress(stats)
    for name, tensor in best.items():
        parameters[name].data.copy_(tensor)
    history = tuple(EpochStats(**one) for one in state.history)
    return TrainedRecommender(model.eval(), config, history, state.best_epoch)


def _epoch(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    sequences: Sequences,
    config: RecommenderConfig,
    epoch: int,
) -> float:
    model.train()
    # Dropout's masks follow from the epoch, so that a resumed run draws the same.
    torch.manual_seed(config.seed * 1_000_003 + epoch)
    rng = np.random.default_rng((config.seed, epoch))
    total, count = 0.0, 0
    for batch in _batches(sequences, config, rng):
        loss, n = batch_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss / n).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, count = total + loss.item(), count + n
    return total / max(count, 1)


def batch_loss(model: SequenceModel, windows: list[Int[np.ndarray, " _"]]) -> tuple[Float[Tensor, ""], int]:
    """Eq. 8 summed over every position of the windows but the last, and how many those are."""
    device = model.positions.device
    inputs = nn.utils.rnn.pad_sequence([torch.from_numpy(w[:-1]) for w in windows], batch_first=True).to(
        device
    )
    targets = torch.from_numpy(np.concatenate([w[1:] for w in windows])).to(device)
    lengths = torch.tensor([len(w) - 1 for w in windows], device=device)
    valid = torch.arange(inputs.shape[1], device=device)[None] < lengths[:, None]
    items = model.table()
    states = model(items, inputs).flatten(0, 1)[valid.flatten().nonzero().squeeze(1)]
    if model.config.similarity == "cosine":
        states = F.normalize(states, dim=-1) / model.config.temperature
        items = F.normalize(items, dim=-1)
    loss: Tensor = FullSoftmax.apply(states, items, targets)  # type: ignore[no-untyped-call]
    return loss, len(targets)


class FullSoftmax(torch.autograd.Function):
    """Cross-entropy of `states @ items.T`, summed, without ever holding all the logits.

    Logits are made, turned into their own gradient and used for both factors' gradients chunk by chunk, in
    one buffer that stays in the processor's cache. (Liger Kernel's fused linear cross-entropy is the idea.)
    """

    chunk_elements = 1 << 19

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, FullSoftmax.chunk_elements // len(items))
        buffer = torch.empty(rows, len(items), device=items.device)
        d_states, d_items = torch.empty_like(states), torch.zeros_like(items)
        total = states.new_zeros(())
        for start in range(0, len(states), rows):
            h, y = states[start : start + rows], targets[start : start + rows, None]
            logits = torch.mm(h, items.T, out=buffer[: len(h)])
            logits.sub_(logits.amax(1, keepdim=True))
            shifted = logits.gather(1, y)
            weights = logits.exp_()
            sums = weights.sum(1, keepdim=True)
            total += (sums.log() - shifted).sum()
            weights.div_(sums)
            weights.scatter_add_(1, y, torch.full_like(shifted, -1.0))
            torch.mm(weights, items, out=d_states[start : start + len(h)])
            d_items.addmm_(weights.T, h)
        ctx.save_for_backward(d_states, d_items)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_states, d_items = ctx.saved_tensors
        return d_states * grads[0], d_items * grads[0], None


def _batches(
    sequences: Sequences, config: RecommenderConfig, rng: np.random.Generator
) -> Iterator[list[Int[np.ndarray, " _"]]]:
    """Windows of at most max_len + 1 items that cover every transition, about batch_size positions a batch.

    Longer sequences are cut at places drawn anew each epoch; windows of similar length go together.
    """
    windows: list[Int[np.ndarray, " _"]] = []
    for user in range(len(sequences)):
        items = sequences.of(user)
        n = len(items)
        start = -int(rng.integers(config.max_len)) if n > config.max_len + 1 else 0
        while start < n - 1:
            window = items[max(start, 0) : start + config.max_len + 1]
            if len(window) > 1:
                windows.append(np.ascontiguousarray(window))
            start += config.max_len
    order = rng.permutation(len(windows))
    lengths = np.array([len(windows[i]) for i in order])
    order = order[np.argsort(lengths, kind="stable")]
    groups: list[list[int]] = []
    positions = config.batch_size
    for i in order:
        if positions >= config.batch_size:
            groups.append([])
            positions = 0
        groups[-1].append(int(i))
        positions += len(windows[i]) - 1
    for g in rng.permutation(len(groups)):
        yield [windows[i] for i in groups[g]]


__all__ = [
    "EpochStats",
    "TrainedRecommender",
    "VectorTable",
    "batch_loss",
    "item_embeddings",
    "make_table",
    "train",
]
