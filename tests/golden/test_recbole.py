"""Metrics and evaluation equal to those of RecBole 1.2.1, whose figures are in `recbole.json`.

With `EAREC_RECBOLE=PYTHON`, the Python of an environment with RecBole, they are also made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from earec_core.config import RecommenderConfig
from earec_core.metrics.ranking import Metrics, rank_of
from earec_core.recommend import Recommender, evaluate
from tests.golden.recbole_side import KS, WEIGHT, scores
from tests.golden.record_recbole import MAX_LEN, digests, exported, figures

RECORDED = json.loads((Path(__file__).parent / "recbole.json").read_text())
RECBOLE = os.environ.get("EAREC_RECBOLE")


class Faded(Recommender):
    """The model of `recbole_side.py`."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(RecommenderConfig(dim=vectors.shape[1], max_len=MAX_LEN))
        self.vectors = vectors

    def loss(self, windows: Sequence[np.ndarray]) -> tuple[Tensor, int]:
        raise NotImplementedError

    def items(self) -> Tensor:
        return self.vectors

    def users(self, histories: Sequence[Tensor], items: Tensor) -> Tensor:
        recent = [history[-MAX_LEN:].flip(0) for history in histories]
        weights = pad_sequence([WEIGHT ** torch.arange(len(r)).float() for r in recent], batch_first=True)
        return (weights[..., None] * items[pad_sequence(recent, batch_first=True)]).sum(1)


def _figures(metrics: Metrics) -> dict[str, float]:
    return {f"hit@{k}": metrics.hr(k) for k in KS} | {f"ndcg@{k}": metrics.ndcg(k) for k in KS}


def _assert_recorded(found: dict[str, float], recorded: dict[str, float]) -> None:
    assert all(0 < value < 1 for value in recorded.values())
    assert found == pytest.approx(recorded, abs=1e-6)


def test_metrics_are_those_of_recbole() -> None:
    found, targets = (torch.from_numpy(array) for array in scores())
    ranks = rank_of(found, targets).numpy()
    _assert_recorded(_figures(Metrics(ranks, np.arange(len(ranks)))), RECORDED["metrics"])


def test_the_evaluation_is_that_of_recbole(tmp_path: Path) -> None:
    """The same files, which RecBole read, split, ranked in full and averaged itself."""
    catalog, vectors = exported(tmp_path)
    assert digests(tmp_path / "shop") == RECORDED["files"]
    split, model = catalog.leave_one_out(), Faded(torch.from_numpy(vectors))
    assert 0 < len(split.eval_users) < len(split.train)
    for part, recorded in RECORDED["evaluation"].items():
        _assert_recorded(_figures(evaluate(model, split, part)), recorded)


@pytest.mark.skipif(not RECBOLE, reason="needs RecBole; set EAREC_RECBOLE to its Python")
def test_recbole_says_so_still(tmp_path: Path) -> None:
    exported(tmp_path)
    found: dict[str, Any] = figures(str(RECBOLE), tmp_path / "shop")
    assert found["files"] == RECORDED["files"]
    _assert_recorded(found["metrics"], RECORDED["metrics"])
    for part, recorded in RECORDED["evaluation"].items():
        _assert_recorded(found["evaluation"][part], recorded)
