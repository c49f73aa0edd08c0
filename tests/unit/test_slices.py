"""Slices and breadth against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from earec_core.catalog import Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.cli import recommend as cli
from earec_core.config import RecommenderConfig
from earec_core.metrics.ranking import Metrics
from earec_core.recommend import MODELS, evaluate, train
from earec_core.recommend.slices import SLICES, breadth, slices

N = 30


def test_slices_are_those_users_and_breadth_is_what_the_lists_hold() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 80)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    popular = rng.choice(N - 4, offsets[-1], p=np.arange(1, N - 3) / np.arange(1, N - 3).sum())
    popular[offsets[1:5] - 1] = [26, 27, 28, 29]  # targets of the test that nobody is trained on
    users = np.array([f"u{i}" for i in range(len(lengths))])
    split = leave_one_out(Sequences(users, offsets, popular))
    config = RecommenderConfig(dim=8, inner=16, dropout=0.0, max_len=6, lr=0.01, epochs=2)
    model = train(MODELS["sasrec"], split, N, config).model
    metrics = evaluate(model, split, "test", top=10)

    rows = {row["slice"]: row for row in slices(metrics, split, "test", N)}
    seen = {item: int((split.train.items == item).sum()) for item in range(N)}
    targets = [int(split.test[user]) for user in metrics.users]
    before = [len(split.train.of(int(user))) + 1 for user in metrics.users]
    expected = {
        "all": [True] * len(targets),
        "unseen": [seen[t] == 0 for t in targets],
        "cold": [0 < seen[t] < 5 for t in targets],
        "warm": [seen[t] >= 5 for t in targets],
        "short": [n < 5 for n in before],
        "long": [n >= 5 for n in before],
    }
    assert sum(expected["unseen"]) == 4
    for name, chosen in expected.items():
        hits = [rank <= 10 for rank, mine in zip(metrics.ranks, chosen, strict=True) if mine]
        assert rows[name]["users"] == len(hits)
        assert rows[name]["hr@10"] == pytest.approx(np.mean(hits), abs=1e-6)

    assert metrics.top is not None
    for rank, target, top in zip(metrics.ranks, targets, metrics.top, strict=True):
        assert len(set(top)) == 10
        assert (rank <= 10) == (target in top)
        if rank <= 10:
            assert top[rank - 1] == target
    listed = [int(item) for top in metrics.top for item in top]
    below = {
        i: (sum(seen[j] < seen[i] for j in seen) + sum(seen[j] <= seen[i] for j in seen) - 1) / 2
        for i in seen
    }
    assert breadth(metrics, split, N) == {
        "coverage": pytest.approx(len(set(listed)) / N, abs=1e-6),
        "popularity": pytest.approx(np.mean([below[i] for i in listed]) / (N - 1), abs=1e-6),
    }


def test_items_drawn_at_random_have_popularity_one_half() -> None:
    counts = np.repeat(np.arange(N), np.arange(N))
    split = leave_one_out(Sequences(np.array(["u"]), np.array([0, len(counts)]), counts))
    metrics = Metrics(np.ones(1, int), np.zeros(1, int), np.arange(N)[None])
    assert breadth(metrics, split, N)["popularity"] == pytest.approx(0.5)
    assert breadth(metrics, split, N)["coverage"] == 1.0


def test_the_command_knows_every_slice() -> None:
    assert list(SLICES) == cli._SLICES
