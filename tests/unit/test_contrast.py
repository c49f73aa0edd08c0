"""Pairs of items that follow each other: who goes with whom, the batches, and the loss, against plain loops."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.align.contrast import Companions, Contrast, paired_batches
from earec_core.aligned.model import States
from earec_core.aligned.prompts import Sample
from earec_core.aligned.readouts import READOUTS
from earec_core.catalog import Sequences
from earec_core.llm.prompts import Prompt

N = 24


@pytest.fixture
def sequences() -> Sequences:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 30)
    items = rng.integers(0, N - 2, lengths.sum())  # two items that nobody has
    return Sequences(np.array([f"u{i}" for i in range(30)]), np.concatenate([[0], np.cumsum(lengths)]), items)


def _samples(rows: Any) -> list[Sample]:
    return [Sample(Prompt(int(row), ()), (1,), 3) for row in rows]


def test_companions_are_near_in_a_sequence_users_count_alike_and_the_popular_less(
    sequences: Sequences,
) -> None:
    allowed = [row for row in range(N) if row % 5]
    expected: dict[tuple[int, int], float] = defaultdict(float)
    counts = np.bincount(sequences.items, minlength=N)
    for user in range(len(sequences)):
        mine = sequences.of(user).tolist()
        for i, a in enumerate(mine):
            for j, b in enumerate(mine):
                if 0 < abs(i - j) <= 3 and a != b and a % 5 and b % 5:
                    expected[a, b] += 1 / len(mine) / math.sqrt(counts[b])
    companions = Companions.read(sequences, allowed)
    for row in allowed:
        mine = {b: weight for (a, b), weight in expected.items() if a == row}
        if not mine:
            assert row not in companions.of
            continue
        others, chances = companions.of[row]
        assert dict(zip(others.tolist(), chances, strict=True)) == pytest.approx(
            {b: weight / sum(mine.values()) for b, weight in mine.items()}
        )
        assert all(companions.together(row, b) == (b in mine) for b in range(N))


def test_every_sample_comes_once_beside_a_companion_and_what_looks_alike_comes_together(
    sequences: Sequences,
) -> None:
    companions = Companions.read(sequences, range(N))
    groups = np.repeat(np.eye(4), N // 4, axis=0)  # six items of each look exactly alike
    epoch = list(paired_batches(_samples(range(N)), companions, groups, 8, 0, 0))
    anchors = []
    for batch in epoch:
        rows = [sample.prompt.item for sample in batch]
        paired = [row for row in rows if row in companions.of]
        alone = [row for row in rows if row not in companions.of]
        assert rows == [*paired, *alone]
        assert all(
            companions.together(*pair)
            for pair in zip(rows[0 : len(paired) : 2], rows[1 : len(paired) : 2], strict=True)
        )
        anchors.append([*rows[0 : len(paired) : 2], *alone])
    assert sorted(row for mine in anchors for row in mine) == list(range(N))
    assert len({row // 6 for row in anchors[1]}) == 1
    again = paired_batches(_samples(range(N)), companions, groups, 8, 0, 0)
    assert [[s.prompt.item for s in b] for b in again] == [[s.prompt.item for s in b] for b in epoch]
    other = paired_batches(_samples(range(N)), companions, groups, 8, 0, 1)
    assert [[s.prompt.item for s in b] for b in other] != [[s.prompt.item for s in b] for b in epoch]


def test_the_loss_is_infonce_over_the_batch_with_known_companions_and_chances_left_out(
    sequences: Sequences,
) -> None:
    companions = Companions.read(sequences, range(N))
    vectors = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)).double() * torch.tensor(
        [1, 1, 1, 1, 90]
    )

    def states(rows: Any) -> States:
        hidden = vectors[list(rows)][:, None]
        lengths = torch.ones(len(hidden), dtype=torch.long)
        return States(hidden, lengths, torch.full((len(hidden), 1), -1), ("text",))

    contrast = Contrast(_samples(range(N)), companions, READOUTS["last"], 0.2)
    batch = next(iter(paired_batches(_samples(range(N)), companions, np.eye(N), 8, 3, 0)))
    rows = [sample.prompt.item for sample in batch] + [N - 1]  # the last one has no companion
    mine = vectors[rows]
    standard = (mine - mine.mean(0)) / mine.std(0, correction=0)
    unit = standard / standard.norm(dim=1, keepdim=True)
    shares = np.full(N, 0.5 / N)
    for row in range(N):
        others, chances = companions.of.get(row, (np.array([row]), np.ones(1)))
        np.add.at(shares, others, 0.5 * chances / N)
    assert shares.sum() == pytest.approx(1)
    expected = 0.0
    forth = [(k, k + 1) for k in range(0, 8, 2) if companions.together(rows[k], rows[k + 1])]
    assert len(forth) >= 3
    for a, b in forth + [(b, a) for a, b in forth]:
        scores = {}
        for c in range(len(rows)):
            stays = c == b or (rows[c] != rows[a] and not companions.together(rows[a], rows[c]))
            if stays:
                scores[c] = float(unit[a] @ unit[c]) / 0.2 - math.log(shares[rows[c]])
        expected += math.log(sum(math.exp(s) for s in scores.values())) - scores[b]
    assert float(contrast.loss(states(rows), rows)) == pytest.approx(expected)
    assert float(contrast.loss(states([N - 1, N - 2]), [N - 1, N - 2])) == 0.0
