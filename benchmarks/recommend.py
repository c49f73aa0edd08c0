"""An epoch of the recommender's training beside the same in plain PyTorch, side by side in one process.

Both get the same sequences in the same batches and begin with the same weights; without dropout their items
after an epoch are compared before a ratio is printed. The plain loop is what a script writes: nn.TransformerEncoder
with a causal mask, the logits of all positions at once, F.cross_entropy.

    python benchmarks/recommend.py [--users 5000] [--items 2500] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from copy import deepcopy

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import RecommenderConfig
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.tables import IdTable

Batch = list[np.ndarray]


class Plain(nn.Module):
    """A `TransformerRecommender` over ids from PyTorch's own layers, with its weights."""

    def __init__(self, model: TransformerRecommender) -> None:
        super().__init__()
        c = model.config
        self.items, self.positions = nn.Parameter(model.items().detach().clone()), deepcopy(model.positions)
        self.norm, self.dropout = deepcopy(model.norm), nn.Dropout(c.dropout)
        layer = nn.TransformerEncoderLayer(c.dim, c.heads, c.inner, c.dropout, F.gelu, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, c.layers)
        for mine, ours in zip(self.encoder.layers, model.layers, strict=True):
            pairs = (
                (mine.linear1, ours.up),
                (mine.linear2, ours.down),
                (mine.norm1, ours.norm_attention),
                (mine.norm2, ours.norm),
                (mine.self_attn.out_proj, ours.out),
            )
            for to, source in pairs:
                to.load_state_dict(source.state_dict())
            mine.self_attn.in_proj_weight.data.copy_(ours.qkv.weight)
            mine.self_attn.in_proj_bias.data.copy_(ours.qkv.bias)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over every position but the last of each sequence."""
        rows = [torch.from_numpy(sequence) for sequence in batch]
        inputs = nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
        targets = nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
        length = inputs.shape[1]
        h = self.dropout(self.norm(F.embedding(inputs, self.items) + self.positions[:length]))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits = self.encoder(h, mask=mask, is_causal=True) @ self.items.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def sequences(users: int, items: int, longest: int) -> list[np.ndarray]:
    """Random ones, item frequencies as of Zipf's law, lengths 4 to `longest` and mostly short."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, items + 1)
    lengths = np.minimum(4 + rng.geometric(0.1, users), longest)
    return [rng.choice(items, n, p=popularity / popularity.sum()) for n in lengths]


def batches(found: list[np.ndarray], positions: int) -> list[Batch]:
    """Sequences of similar length together, about so many positions a batch."""
    made: list[Batch] = [[]]
    for sequence in sorted(found, key=len):
        if sum(len(s) - 1 for s in made[-1]) >= positions:
            made.append([])
        made[-1].append(sequence)
    return made


def epoch(parameters: Iterable[nn.Parameter], losses: Callable[[Batch], Tensor], given: list[Batch]) -> float:
    """Train on every batch once; seconds."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    started = time.perf_counter()
    for batch in given:
        optimizer.zero_grad(set_to_none=True)
        losses(batch).backward()
        optimizer.step()
    return time.perf_counter() - started


def ours(model: TransformerRecommender, batch: Batch) -> Tensor:
    loss, n = model.loss(batch)
    return loss / n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--items", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=1024, help="positions")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    given = batches(sequences(options.users, options.items, 51), options.batch)
    best = {}
    for dropout, repeat in ((0.0, 1), (0.3, options.repeat)):
        torch.manual_seed(0)
        config = RecommenderConfig(dropout=dropout)
        model = TransformerRecommender(IdTable(options.items, config.dim), config).train()
        plain = Plain(model).train()
        contestants = {
            "plain PyTorch": lambda one=plain: epoch(one.parameters(), one.loss, given),
            "earec": lambda one=model: epoch(one.parameters(), lambda batch: ours(one, batch), given),
        }
        for _ in range(repeat + bool(dropout)):
            for name, run in contestants.items():
                best.setdefault((name, dropout), []).append(run())
        if not dropout:
            expected = plain.items.detach()
            worst = float((model.items().detach() - expected).abs().max())
            assert worst < 1e-2 * float(expected.abs().max()), f"the items differ by {worst}"
            print(f"largest difference of the items after an epoch without dropout {worst:.1e}")
    theirs, mine = (min(best[name, 0.3][1:]) for name in ("plain PyTorch", "earec"))
    print(f"{options.users} users, {options.items} items, {torch.get_num_threads()} threads, dropout 0.3")
    print(f"plain PyTorch  {theirs:8.2f} s   1.00")
    print(f"earec          {mine:8.2f} s   {theirs / mine:.2f} times faster")


if __name__ == "__main__":
    main()
