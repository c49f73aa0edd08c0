"""How far can items' vectors tell who goes with whom? The pairs' loss of `align.pairs` on frozen vectors.

Usage: pairs_probe.py WORK CATALOG VECTORS
Prints the mean loss over random batches of eight pairs of training items, by temperature, beside that of chance;
then the loss on pairs of items held back, for a network of two layers that is trained on those of training items.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.align.contrast import Companions
from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.recommend.scaling import scaled
from earec_registry import Registry

_PAIRS, _BATCHES, _TRAINED = 8, 100, 64
_TEMPERATURES = (0.05, 0.1, 0.2, 0.5)


def drawn(companions: Companions, rng: np.random.Generator, n: int) -> list[int]:
    """Items and their companions, side by side."""
    rows: list[int] = []
    for row in rng.choice(sorted(companions.of), n, replace=False).tolist():
        others, chances = companions.of[row]
        rows += [row, int(rng.choice(others, p=chances))]
    return rows


def loss(vectors: Tensor, rows: list[int], companions: Companions, temperature: float) -> Tensor:
    """InfoNCE: of a batch's items the companion is to be the nearest; other companions are no negatives."""
    unit = F.normalize(vectors, dim=-1)
    scores = unit @ unit.T / temperature
    pairs = [(k, k + 1) for k in range(0, len(rows), 2)] + [(k + 1, k) for k in range(0, len(rows), 2)]
    anchors, targets = torch.tensor(pairs).T
    hidden = torch.tensor([[a == b or companions.together(a, b) for b in rows] for a in rows])[anchors]
    hidden[torch.arange(len(pairs)), targets] = False
    return F.cross_entropy(scores[anchors].masked_fill(hidden, -torch.inf), targets)


@torch.no_grad()
def mean_loss(vectors: Tensor, companions: Companions, temperature: float) -> tuple[float, float]:
    """Over random batches; and that of vectors that are all alike."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_BATCHES):
        rows = drawn(companions, rng, _PAIRS)
        alike = torch.ones(len(rows), 2)
        found.append([float(loss(v, rows, companions, temperature)) for v in (vectors[rows], alike)])
    own, chance = np.mean(found, axis=0)
    return own, chance


def main() -> None:
    work = Path(sys.argv[1])
    catalog = Catalog.open(work / sys.argv[2])
    raw = torch.from_numpy(ItemVectors.open(Registry.open(work / "registry"), sys.argv[3], catalog).vectors)
    sequences = catalog.leave_one_out().train
    train = Companions.read(sequences, catalog.item_split("train").tolist())
    rest = [*catalog.item_split("valid").tolist(), *catalog.item_split("test").tolist()]
    held = Companions.read(sequences, rest)
    standardised = (raw - raw.mean(0)) / raw.std(0).clamp_min(1e-6)
    for temperature in _TEMPERATURES:
        own, chance = mean_loss(standardised, train, temperature)
        print(f"temperature {temperature}: {own:.3f}, chance {chance:.3f}")
    x = scaled(raw, RecommenderConfig(scaling="soften", soften=1.0))
    x = x / x.std()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(x.shape[1], 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 64))
    optimizer, rng = torch.optim.Adam(network.parameters(), 1e-3), np.random.default_rng(1)
    for step in range(401):
        if step in (0, 50, 100, 200, 400):
            with torch.no_grad():
                mapped = network.eval()(x)
            (seen, _), (unseen, chance) = (mean_loss(mapped, c, 0.2) for c in (train, held))
            print(
                f"{step} steps: training items {seen:.3f}, items held back {unseen:.3f}, chance {chance:.3f}"
            )
        rows = drawn(train, rng, _TRAINED)
        optimizer.zero_grad()
        loss(network.train()(x[rows]), rows, train, 0.2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


if __name__ == "__main__":
    main()
