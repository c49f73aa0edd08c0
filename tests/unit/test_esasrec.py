"""eSASRec against its papers' equations (arXiv 2508.06450, 2502.03417, 2002.05202), written out one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from earec_core.catalog import Sequences
from earec_core.catalog.splits import LeaveOneOut, leave_one_out
from earec_core.config import RecommenderConfig
from earec_core.recommend import MODELS, Items, Retriever, TrainedRecommender, evaluate, train
from earec_core.recommend.models.esasrec import ESASRec, LiGRBlock

N, D, HEADS, INNER = 20, 8, 2, 12
CONFIG = RecommenderConfig(dim=D, heads=HEADS, inner=INNER, max_len=10, dropout=0.0)


def _drawn_anew(module: torch.nn.Module) -> None:
    """Parameters of a size at which every part counts, biases and norms too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.3, 0.5)


def _model(counts: Tensor | None = None, **changes: object) -> ESASRec:
    torch.manual_seed(0)
    counts = torch.ones(N, dtype=torch.long) if counts is None else counts
    model = MODELS["esasrec"].build(CONFIG.model_copy(update=changes), Items(counts))
    assert isinstance(model, ESASRec)
    _drawn_anew(model)
    return model.eval()


def _norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _attention(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Multi-head attention of one sequence, position by position and head by head."""
    q, k, v = (x @ p["qkv.weight"].T + p["qkv.bias"]).split(D, dim=-1)
    width, rows = D // HEADS, []
    for t in range(len(x)):
        heads = []
        for part in (slice(head * width, (head + 1) * width) for head in range(HEADS)):
            scores = [math.exp(float(q[t, part] @ k[j, part]) / math.sqrt(width)) for j in range(t + 1)]
            heads.append(sum(score / sum(scores) * v[j, part] for j, score in enumerate(scores)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ p["out.weight"].T + p["out.bias"]


def _ligr(h: Tensor, p: dict[str, Tensor]) -> Tensor:
    """h + sigmoid(h W_1) * MHA(LN(h)), then the same of (silu(x G) * x U) D."""

    def gate(h: Tensor, name: str) -> Tensor:
        return 1 / (1 + torch.exp(-(h @ p[f"{name}.weight"].T + p[f"{name}.bias"])))

    normed = _norm(h, p["norm_attention.weight"], p["norm_attention.bias"])
    h = h + gate(h, "gate_attention") * _attention(normed, p)
    x = _norm(h, p["norm.weight"], p["norm.bias"])
    swish, linear = x @ p["up.weight"][:INNER].T, x @ p["up.weight"][INNER:].T
    return h + gate(h, "gate") * ((swish / (1 + torch.exp(-swish)) * linear) @ p["down.weight"].T)


def test_a_block_is_a_layer_of_ligr() -> None:
    torch.manual_seed(1)
    block = LiGRBlock(CONFIG).double().eval()
    _drawn_anew(block)
    h = torch.randn(3, 5, D, dtype=torch.double)
    p = {name: tensor.detach() for name, tensor in block.named_parameters()}
    assert not {"up.bias", "down.bias"} & set(p)
    with torch.inference_mode():
        torch.testing.assert_close(block(h), torch.stack([_ligr(sequence, p) for sequence in h]))


def test_every_layer_of_the_model_is_one_and_none_sees_a_later_position() -> None:
    model = _model(layers=3)
    rows = torch.tensor([[3, 1, 4, 1, 5, 9]])
    items = model.items().detach()
    h = _norm(items[rows[0]] + model.positions[:6], model.norm.weight, model.norm.bias).detach()
    for block in model.layers:
        h = _ligr(h, {name: tensor.detach() for name, tensor in block.named_parameters()})
    with torch.inference_mode():
        whole = model(items, rows)[0]
        torch.testing.assert_close(whole, h, atol=1e-3, rtol=1e-4)
        for end in range(1, 6):
            later = torch.cat([rows[:, :end], (rows[:, end:] + 7) % N], dim=1)
            changed = model(items, later)[0]
            torch.testing.assert_close(changed[:end], whole[:end])
            assert not torch.allclose(changed[end:], whole[end:], atol=1e-2)


def test_each_prediction_has_its_own_negatives_among_the_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is the cross-entropy of each target among its own draws, of which it is none."""
    counts = torch.tensor([0, 1] * (N // 2))
    model = _model(counts, negatives=6, candidates="trained")
    draws = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 1, 5, 6, 7, 8], [9, 2, 4, 6, 8, 0]])
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: draws if size == (3, 6) else None)
    loss, count = model.loss([np.array([1, 3, 5]), np.array([7, 9])])
    items = model.items()
    states = torch.cat([model(items, torch.tensor([[1, 3]]))[0], model(items, torch.tensor([[7]]))[0]])
    candidates, expected = [row for row in range(N) if counts[row]], torch.zeros(())
    for state, target, drawn in zip(states, (3, 5, 9), draws.tolist(), strict=True):
        others = [candidates[place] for place in drawn if candidates[place] != target]
        weighed = sum((items[row] @ state).exp() for row in others) * len(candidates) / len(drawn)
        expected = expected + torch.log((items[target] @ state).exp() + weighed) - items[target] @ state
    assert count == 3
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("given", "used"), [(None, 256), (7, 7)])
def test_the_negatives_are_the_authors_where_none_are_given(given: int | None, used: int) -> None:
    model = _model(negatives=given)
    assert model.config.negatives == used
    torch.manual_seed(0)
    drawn = model._sample(500, N, used)
    assert drawn.shape == (500, used)
    shares = torch.bincount(drawn.flatten(), minlength=N) / drawn.numel()
    assert (shares - 1 / N).abs().max() < 0.01
    assert not torch.equal(drawn[0], drawn[1])


def _cycle() -> LeaveOneOut:
    """Users whose every next item follows from the last: item i is followed by i + 1."""
    rows = np.array([[(start + i) % N for i in range(8)] for start in range(N)] * 3)
    users = np.arange(len(rows)).astype(str)
    return leave_one_out(Sequences(users, np.arange(0, rows.size + 1, 8), rows.ravel()))


def test_it_learns_and_what_is_stored_ranks_the_same(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"dim": 16, "lr": 0.02, "epochs": 20, "negatives": 8})
    trained = train(MODELS["esasrec"], _cycle(), N, config)
    before = evaluate(trained.model, _cycle(), "test")
    assert before.ndcg(10) > 0.95
    trained.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "index.faiss"}
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "esasrec"
    loaded = TrainedRecommender.load(tmp_path)
    assert all(isinstance(block, LiGRBlock) for block in loaded.model.layers)  # type: ignore[union-attr]
    np.testing.assert_array_equal(evaluate(loaded.model, _cycle(), "test").ranks, before.ranks)
    history = torch.tensor([4, 5, 6])
    (ranking,) = Retriever.open(tmp_path, [f"i{row}" for row in range(N)]).recommend([history], 5)
    with torch.inference_mode():
        items = loaded.model.items()
        scores = loaded.model.scores(loaded.model.users([history], items), items)[0]
    unseen = [row for row in scores.argsort(descending=True).tolist() if row not in history.tolist()]
    assert ranking.rows.tolist() == unseen[:5]
    assert ranking.ids[0] == "i7"
