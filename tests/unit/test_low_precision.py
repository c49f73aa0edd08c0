"""Training a recommender in bfloat16: float32's loss and gradients up to rounding; what is kept stays float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from earec_core.catalog import Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.config import RecommenderConfig
from earec_core.recommend import MODELS, evaluate, train
from earec_core.recommend.loss import FullSoftmax
from earec_core.recommend.tables import Items

N, WIDTH = 30, 24
CONFIG = RecommenderConfig(dim=16, inner=32, dropout=0.0, max_len=8, batch_size=64, epochs=4, lr=0.01)
LOW = CONFIG.model_copy(update={"dtype": "bfloat16"})
LEARNING = [name for name, kind in MODELS.items() if not kind.counts and not kind.needs_words]
ROUNDING = 0.05
"""Of a gradient: bfloat16 keeps 8 bits, 0.4% of each number that a product reads or gives."""


def _sequences() -> Sequences:
    """Users whose every next item follows from the last: item i is followed by i + 1."""
    items = np.array([(start + i) % N for start in range(N) for i in range(7)])
    return Sequences(np.array([f"u{row}" for row in range(N)]), np.arange(0, len(items) + 1, 7), items)


def _items(name: str) -> Items:
    vectors = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1))
    items = Items(torch.full((N,), 7), sequences=_sequences())
    return replace(items, vectors=vectors) if MODELS[name].needs_vectors else items


@pytest.mark.parametrize("chunk", [50, 1 << 21])
def test_the_softmax_in_bfloat16_is_that_of_float32_up_to_rounding(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FullSoftmax, "chunk_elements_low", chunk)
    torch.manual_seed(0)
    states, items = torch.randn(37, 16), torch.randn(11, 16)
    targets = torch.randint(11, (37,))
    gradients = []
    for low in (False, True):
        factors = [factor.clone().requires_grad_() for factor in (states, items)]
        if low:
            with torch.autocast("cpu", torch.bfloat16):
                loss = FullSoftmax.apply(*factors, targets)
        else:
            loss = F.cross_entropy(factors[0] @ factors[1].T, targets, reduction="sum")
        loss.backward()
        gradients.append([loss.detach(), *(factor.grad for factor in factors)])
    for exact, low in zip(*gradients, strict=True):
        assert low.dtype == torch.float32
        assert 0 < (low - exact).norm() < ROUNDING * exact.norm()


@pytest.mark.parametrize("table", ["mlp", "moe+ids"])
@pytest.mark.parametrize("name", LEARNING)
def test_every_models_loss_and_gradients_are_those_of_float32_up_to_rounding(name: str, table: str) -> None:
    if table != CONFIG.table and not MODELS[name].needs_vectors:
        pytest.skip("this model has no table to choose")
    kind = MODELS[name]
    config = kind.resolved(CONFIG.model_copy(update={"table": table, "id_dropout": 0.0}))
    windows = [_sequences().of(user) for user in range(N)]
    results = []
    for low in (False, True):
        torch.manual_seed(0)
        model = kind.build(config, _items(name)).train()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss, count = model.loss(windows)
        assert loss.dtype == torch.float32
        (loss / count).backward()
        results.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (exact, gradients), (loss_low, gradients_low) = results
    assert loss_low == pytest.approx(exact, rel=0.01)
    whole, whole_low = (
        torch.cat([g.flatten() for g in found.values()]) for found in (gradients, gradients_low)
    )
    assert gradients.keys() == gradients_low.keys()
    assert whole_low.dtype == torch.float32
    assert (whole_low - whole).norm() < ROUNDING * whole.norm()


def test_what_is_trained_in_bfloat16_is_stored_in_float32_and_learns_as_well() -> None:
    split = leave_one_out(_sequences())
    exact, low = (
        train(MODELS["sasrec"], split, N, config.model_copy(update={"epochs": 40}))
        for config in (CONFIG, LOW)
    )
    assert {tensor.dtype for tensor in low.model.to_store().values()} == {torch.float32}
    assert low.history[-1].loss != exact.history[-1].loss
    assert evaluate(low.model, split, "test").hr(1) == evaluate(exact.model, split, "test").hr(1) == 1
