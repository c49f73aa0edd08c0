"""UniSRec against its paper's equations (Hou et al., KDD 2022, arXiv 2206.05941), written out one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from earec_core.config import RecommenderConfig
from earec_core.recommend import MODELS
from earec_core.recommend.models.unisrec import UniSRec
from earec_core.recommend.tables import Items

N, D_IN, D, HEADS, TAU = 12, 6, 8, 2, 0.07
WINDOWS = [np.array([1, 4, 2, 9, 4]), np.array([3, 7]), np.array([5, 1, 4, 2, 7]), np.array([8, 0, 6, 11])]
CONFIG = RecommenderConfig(dim=D, heads=HEADS, inner=16, max_len=6, dropout=0.0, scaling="none")


def _model(**changes: object) -> UniSRec:
    """A model with parameters of a size at which every part of it counts."""
    torch.manual_seed(0)
    items = Items(torch.ones(N, dtype=torch.long), torch.randn(N, D_IN))
    model = MODELS["unisrec"].build(CONFIG.model_copy(update=changes), items)
    assert isinstance(model, UniSRec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.4)
    return model.eval()


class Paper:
    """The equations over the parameters of a model, in double precision, one sequence at a time."""

    def __init__(self, model: UniSRec) -> None:
        self.p = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
        table = model.table.table if "table.embedding" in self.p else model.table
        self.x = table.vectors.double().numpy()  # type: ignore[union-attr, operator]
        self.at = "table.table." if "table.embedding" in self.p else "table."

    def item(self, row: int) -> np.ndarray:
        """Eqs. 2-4 without the gate's noise: v = sum_k g_k (x - b_k) W_k, g = softmax(x W); + e with ids."""
        x, p, at = self.x[row], self.p, self.at
        gate = np.exp(x @ p[f"{at}gate"])
        mixed = sum(
            weight * (p[f"{at}experts.{k}.weight"] @ (x - p[f"{at}centres"][k]))
            for k, weight in enumerate(gate / gate.sum())
        )
        return np.asarray(mixed) + (p["table.embedding"][row] if "table.embedding" in p else 0.0)

    def sequence(self, rows: np.ndarray) -> np.ndarray:
        """Eqs. 6-7: what the last position of the last layer holds."""
        f = np.stack([self.item(row) + self.p["positions"][j] for j, row in enumerate(rows)])
        f = self._norm(f, "norm")
        for layer in range(2):
            f = self._layer(f, f"layers.{layer}.")
        return np.asarray(f[-1])

    def _layer(self, f: np.ndarray, at: str) -> np.ndarray:
        q, k, v = np.split(self._linear(f, f"{at}qkv"), 3, axis=1)
        heads, width = [], D // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            rows = []
            for t in range(len(f)):
                weights = np.exp(k[: t + 1, part] @ q[t, part] / math.sqrt(width))
                rows.append(weights / weights.sum() @ v[: t + 1, part])
            heads.append(np.stack(rows))
        f = self._norm(f + self._linear(np.concatenate(heads, axis=1), f"{at}out"), f"{at}norm_attention")
        up = self._linear(f, f"{at}up")
        gelu = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        return self._norm(f + self._linear(gelu, f"{at}down"), f"{at}norm")

    def _linear(self, f: np.ndarray, at: str) -> np.ndarray:
        return np.asarray(f @ self.p[f"{at}.weight"].T + self.p[f"{at}.bias"])

    def _norm(self, f: np.ndarray, at: str) -> np.ndarray:
        centred = f - f.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return np.asarray(scaled * self.p[f"{at}.weight"] + self.p[f"{at}.bias"])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _contrast(anchors: list[np.ndarray], others: list[np.ndarray], following: list[int]) -> float:
    """The form of Eqs. 8 and 9, a mean over the batch; an instance of the same next item is no negative."""
    total = 0.0
    for j, anchor in enumerate(anchors):
        scores = [
            _cosine(anchor, other) / TAU
            for i, other in enumerate(others)
            if i == j or following[i] != following[j]
        ]
        total -= _cosine(anchor, others[j]) / TAU - math.log(sum(map(math.exp, scores)))
    return total / len(anchors)


def _prefixes() -> list[tuple[np.ndarray, int]]:
    return [(window[:end], int(window[end])) for window in WINDOWS for end in range(1, len(window))]


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.7])
def test_pre_training_is_the_papers_two_losses(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(pretrain=True, contrast_weight=weight)
    monkeypatch.setattr(model, "_thinned", lambda sequence: np.ascontiguousarray(sequence[::2]))
    loss, count = model.loss(WINDOWS)
    paper = Paper(model)
    sequences = [paper.sequence(rows) for rows, _ in _prefixes()]
    following = [item for _, item in _prefixes()]
    items = _contrast(sequences, [paper.item(item) for item in following], following)
    whole = [paper.sequence(window[:-1]) for window in WINDOWS]
    views = [paper.sequence(window[:-1][::2]) for window in WINDOWS]
    pairs = _contrast(whole, views, [int(window[-1]) for window in WINDOWS])
    assert count == len(following)
    assert loss.item() / count == pytest.approx(items + weight * pairs, rel=1e-4)
    assert items > 0.1
    assert pairs > 0.1


@pytest.mark.parametrize("table", ["moe", "moe+ids"], ids=["inductive", "transductive"])
def test_fine_tuning_is_the_softmax_of_the_cosine_over_the_catalog(table: str) -> None:
    model = _model(table=table)
    loss, count = model.loss(WINDOWS)
    paper, expected = Paper(model), 0.0
    catalog = [paper.item(row) for row in range(N)]
    for rows, item in _prefixes():
        scores = [_cosine(paper.sequence(rows), each) / TAU for each in catalog]
        expected -= scores[item] - math.log(sum(map(math.exp, scores)))
    assert loss.item() / count == pytest.approx(expected / count, rel=1e-4)
    with torch.inference_mode():
        items = model.items()
        scored = model.scores(model.users([torch.tensor([5, 1, 4])], items), items)[0]
    sequence = paper.sequence(np.array([5, 1, 4]))
    np.testing.assert_allclose(scored, [_cosine(sequence, each) / TAU for each in catalog], atol=1e-4)


def test_the_adaptor_and_the_cosine_come_with_the_model() -> None:
    for table, expected in (("mlp", "moe"), ("linear+ids", "moe+ids")):
        config = _model(table=table, similarity="inner").config
        assert (config.table, config.similarity) == (expected, "cosine")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_a_view_lacks_that_share_of_a_sequence_but_never_its_first(share: float) -> None:
    model, sequence = _model(pretrain=True, item_drop=share), np.arange(9)
    views = [model._thinned(sequence) for _ in range(2000)]
    assert all(view[0] == 0 and (np.diff(view) > 0).all() for view in views)
    kept = np.mean([len(view) - 1 for view in views]) / 8
    assert kept == pytest.approx(1 - share, abs=5 * (share * (1 - share) / 16000) ** 0.5 + 1e-9)


def test_every_parameter_is_pre_trained_and_views_differ_between_draws() -> None:
    model = _model(pretrain=True, item_drop=0.5, contrast_weight=1.0).train()
    losses: list[Tensor] = []
    for _ in range(2):
        loss, _n = model.loss(WINDOWS)
        losses.append(loss)
    assert losses[0] != losses[1]
    losses[0].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()
