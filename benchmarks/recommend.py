"""The recommender's training beside its peers: an epoch, and the time to a validation NDCG@10.

`epoch`: beside the same in plain PyTorch, side by side in one process. Both get the same sequences in the same
batches and begin with the same weights; without dropout their items after an epoch are compared before a ratio is
printed. The plain loop is what a script writes: nn.TransformerEncoder with a causal mask, the logits of all
positions at once, F.cross_entropy.

`bfloat16`: steps of training in bfloat16 (`recommender.dtype`) beside those of float32, on ids and over frozen
vectors through the `mlp` table, at the size of amazon-games-2018; the losses of both are compared before.

`quality`: SASRec beside RecBole's and RecTools', each in its own environment and a process of its own
(`recommend_worker.py`), on MovieLens-100K with the same split: seconds of training until the validation NDCG@10
that both EAREC and the peer reach.

`rank`: every user's target among all items, at the size of the paper's Office, beside the product of users and
items alone; some ranks are compared with a sort before.

    python benchmarks/recommend.py [--users 5000] [--items 2500] [--repeat 3]
    python benchmarks/recommend.py --only quality --recbole PYTHON --rectools PYTHON [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from earec_core import processor

processor.prepare()

import numpy as np
import torch
from recommend_data import PEERS, add_options, prepare, train
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.catalog import LeaveOneOut, Sequences
from earec_core.config import RecommenderConfig
from earec_core.recommend.evaluate import evaluate, histories
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.tables import IdTable, Items, build_table

Batch = list[np.ndarray]
OFFICE_USERS, OFFICE_ITEMS = 87_346, 25_986
GAMES_ITEMS, WIDTH = 16_428, 576


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


def epoch_figures(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an epoch of both, and how far their items are apart after one without dropout."""
    given = batches(sequences(options.users, options.items, 51), options.batch)
    seconds: dict[str, float] = {}
    worst = 0.0
    for dropout, repeat in ((0.0, 1), (0.3, options.repeat + 1)):
        torch.manual_seed(0)
        config = RecommenderConfig(dropout=dropout)
        model = TransformerRecommender(IdTable(options.items, config.dim), config).train()
        plain = Plain(model).train()
        contestants = {
            "plain": lambda one=plain: epoch(one.parameters(), one.loss, given),
            "earec": lambda one=model: epoch(one.parameters(), lambda batch: ours(one, batch), given),
        }
        runs = [{name: run() for name, run in contestants.items()} for _ in range(repeat)]
        if not dropout:
            expected = plain.items.detach()
            worst = float((model.items().detach() - expected).abs().max())
            assert worst < 1e-2 * float(expected.abs().max()), f"the items differ by {worst}"
        seconds = {name: min(run[name] for run in runs[1:] or runs) for name in contestants}
    ratio = seconds["plain"] / seconds["earec"]
    return {
        "users": options.users,
        "items": options.items,
        "threads": torch.get_num_threads(),
        "plain_s": seconds["plain"],
        "earec_s": seconds["earec"],
        "ratio": ratio,
        "items_differ": worst,
    }


_READ = ("ids", "vectors")


def low_figures(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of some steps in each type, for ids and for vectors, and how far their last losses are apart."""
    rng = np.random.default_rng(0)
    given = [
        [rng.integers(0, GAMES_ITEMS, 8) for _ in range(options.batch // 7)] for _ in range(options.low_steps)
    ]
    vectors = torch.randn(GAMES_ITEMS, WIDTH)
    found: dict[str, Any] = {"items": GAMES_ITEMS, "threads": torch.get_num_threads(), "steps": len(given)}
    config = RecommenderConfig(table="mlp", dropout=0.2)
    for name in _READ:
        items = Items(torch.ones(GAMES_ITEMS, dtype=torch.long), vectors if name == "vectors" else None)
        runs = {
            dtype: [_steps(config.model_copy(update={"dtype": dtype}), items, given) for _ in range(2)]
            for dtype in ("float32", "bfloat16")
        }
        losses = {dtype: run[-1][1] for dtype, run in runs.items()}
        apart = abs(losses["bfloat16"] / losses["float32"] - 1)
        assert apart < 0.01, f"the losses differ by {apart:.1%}"
        seconds = {dtype: min(taken for taken, _ in run) for dtype, run in runs.items()}
        found[name] = {
            **{f"{dtype}_s": taken for dtype, taken in seconds.items()},
            "ratio": seconds["float32"] / seconds["bfloat16"],
            "losses_differ": apart,
        }
    return found


def _steps(config: RecommenderConfig, items: Items, given: list[Batch]) -> tuple[float, float]:
    """Seconds of a training's steps, and its last loss."""
    torch.manual_seed(0)
    table = build_table(config, items) if items.vectors is not None else IdTable(len(items), config.dim)
    model = TransformerRecommender(table, config).train()

    def loss(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            return ours(model, batch)

    epoch(model.parameters(), loss, given[:2])
    taken = epoch(model.parameters(), loss, given)
    return taken, loss(given[0]).item()


def show_low(found: dict[str, Any]) -> None:
    for name in _READ:
        row = found[name]
        print(
            f"{name}: {found['steps']} steps over {found['items']} items, {found['threads']} threads: float32 "
            f"{row['float32_s']:.2f} s, bfloat16 {row['bfloat16_s']:.2f} s, {row['ratio']:.2f} times as fast; "
            f"losses {row['losses_differ']:.2%} apart"
        )


_PRODUCTS = 100
_SHAPES = ((128, OFFICE_ITEMS), (512, 2048))
"""Users by items of the products that are timed: whole rows of scores, and tiles that stay in the cache."""


@torch.inference_mode()
def _products_alone(items: Tensor, users: int, rows: int, columns: int, repeat: int) -> float:
    """Seconds that the products of all users and items take in pieces of this shape, the least of some rounds."""
    queries, keys = torch.randn(rows, items.shape[1]), items[:columns].T
    buffer = torch.empty(rows, columns)

    def products() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(queries, keys, out=buffer)

    seconds = min(_seconds(products) for _ in range(1 + repeat)) / _PRODUCTS
    return seconds * users * len(items) / (rows * columns)


def rank_figures(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of ranking random histories' targets, and of the products alone."""
    config = RecommenderConfig(dim=64)
    n, users = OFFICE_ITEMS, options.rank_users
    torch.manual_seed(0)
    model = TransformerRecommender(IdTable(n, config.dim), config).eval()
    rng = np.random.default_rng(0)
    offsets = np.arange(users + 1) * 6
    train = Sequences(np.arange(users).astype(str), offsets, rng.integers(0, n, offsets[-1]))
    split = LeaveOneOut(train, rng.integers(0, n, users), rng.integers(0, n, users), np.arange(users))
    some = np.arange(64)
    found = evaluate(model, split, "test", users=some).ranks
    with torch.inference_mode():
        items = model.items()
        states = model.users(histories(split, "test", some), items)
        scores = model.scores(states, items).numpy()
    own = scores[some, split.test[some]]
    targets = split.test[some]
    expected = [
        1 + np.sum(row > x) + np.sum(row[:t] == x) for row, x, t in zip(scores, own, targets, strict=True)
    ]
    if not np.array_equal(found, expected):
        raise SystemExit("The ranks differ from those of a sort.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = min(_seconds(lambda: evaluate(model, split, "test")) for _ in range(options.repeat))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    alone = min(_products_alone(items, users, *shape, options.repeat) for shape in _SHAPES)
    return {
        "users": users,
        "items": n,
        "seconds": taken,
        "seconds_of_products": alone,
        "share_of_matrix_rate": alone / taken,
        "grown_mib": grown / 1024,
    }


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def show_rank(found: dict[str, float]) -> None:
    """A line for a person."""
    print(
        f"{found['users']} users over {found['items']} items: ranked in {found['seconds']:.1f} s, the products "
        f"alone {found['seconds_of_products']:.1f} s: {found['share_of_matrix_rate']:.0%} of the matrix rate, "
        f"{found['grown_mib']:.0f} MiB more memory"
    )


def quality_figures(options: argparse.Namespace) -> dict[str, Any]:
    """Epochs and seconds of each contestant, and until its validation NDCG@10 is what both it and EAREC reach."""
    names = ["earec", *(peer for peer in PEERS if getattr(options, peer))]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        catalog = prepare(Path(folder), options.data)
        traces = {name: train(name, Path(folder), options) for name in names}
    found: dict[str, Any] = {"data": catalog.name}
    for name, trace in traces.items():
        found[name] = {
            "epochs": len(trace["valid"]),
            "seconds": trace["seconds"][-1],
            "prepare_s": trace["prepare_s"],
            "best_valid": max(trace["valid"]),
            **{f"test_{metric}": value for metric, value in trace["test"].items()},
            **_beside(traces["earec"], trace),
        }
    return found


def _beside(own: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Both until the lower of their best validation NDCG@10: epochs and seconds of the peer, and how often ours."""
    target = min(max(own["valid"]), max(peer["valid"]))
    ours, theirs = (
        next(n for n, ndcg in enumerate(trace["valid"]) if ndcg >= target) for trace in (own, peer)
    )
    seconds = peer["seconds"][theirs]
    return {
        "target": target,
        "epochs_to_target": theirs + 1,
        "seconds_to_target": seconds,
        "ratio": seconds / own["seconds"][ours],
    }


def show_epoch(found: dict[str, float]) -> None:
    print(f"largest difference of the items after an epoch without dropout {found['items_differ']:.1e}")
    print(f"{found['users']} users, {found['items']} items, {found['threads']} threads, dropout 0.3")
    print(f"plain PyTorch  {found['plain_s']:8.2f} s   1.00")
    print(f"earec          {found['earec_s']:8.2f} s   {found['ratio']:.2f} times faster")


def show_quality(found: dict[str, Any]) -> None:
    print(
        f"SASRec on {found['data']}, one thread; target: the lower best validation NDCG@10 of EAREC and the peer"
    )
    columns = (
        "target",
        "epochs",
        "seconds",
        "ratio",
        "s an epoch",
        "best valid",
        "test NDCG@10",
        "test HR@10",
    )
    print(f"{'':10}" + "".join(f"{column:>13}" for column in columns))
    for name in ("earec", *PEERS):
        if name not in found:
            print(
                f"{name}: absent. Install benchmarks/{name}-requirements.txt elsewhere, give --{name} PYTHON."
            )
            continue
        row = found[name]
        print(
            f"{name:10}{row['target']:13.4f}{row['epochs_to_target']:13}{row['seconds_to_target']:13.1f}"
            f"{row['ratio']:13.2f}{row['seconds'] / row['epochs']:13.2f}{row['best_valid']:13.4f}"
            f"{row['test_ndcg@10']:13.4f}{row['test_hr@10']:13.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--items", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=1024, help="positions")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--low-steps", type=int, default=20, help="of each type, where both are compared")
    parser.add_argument("--rank-users", type=int, default=OFFICE_USERS)
    add_options(parser)
    parser.add_argument("--folder", type=Path, help="for temporary files; default: the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    peers = any(getattr(options, peer) for peer in PEERS)
    parts = [options.only] if options.only else ["epoch", "bfloat16", "rank", *(["quality"] if peers else [])]
    found = {part: PARTS[part][0](options) for part in parts}
    if options.json:
        print(json.dumps(found))
        return
    for part, figures in found.items():
        PARTS[part][1](figures)
    if not options.only and not peers:
        print("quality: left out. It needs --recbole PYTHON or --rectools PYTHON, or --only quality.")


PARTS = {
    "epoch": (epoch_figures, show_epoch),
    "bfloat16": (low_figures, show_low),
    "rank": (rank_figures, show_rank),
    "quality": (quality_figures, show_quality),
}
"""What is measured, and how it is printed."""

if __name__ == "__main__":
    main()
