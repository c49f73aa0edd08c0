"""The recommender against brute force and other libraries."""

from __future__ import annotations

import json
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from earec_core.catalog import LeaveOneOut, Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.config import RecommenderConfig
from earec_core.errors import DataError, EarecError, IntegrityError, UsageError
from earec_core.metrics.ranking import rank_of
from earec_core.recommend import MODELS, Retriever, TrainedRecommender, evaluate, train
from earec_core.recommend.batches import epoch_batches
from earec_core.recommend.dropout import Dropout
from earec_core.recommend.indexes import build_index, keys_of, write_index
from earec_core.recommend.loss import FullSoftmax, sampled_softmax
from earec_core.recommend.models.transformer import TransformerRecommender
from earec_core.recommend.ranking import ranks_by_products
from earec_core.recommend.scaling import scaled
from earec_core.recommend.tables import Items

SASREC, EAREC = MODELS["sasrec"], MODELS["earec"]
IDS = [f"i{row}" for row in range(12)]
SMALL = RecommenderConfig(dim=8, inner=16, dropout=0.0, max_len=6, lr=0.01, batch_size=64, epochs=3)


def _split(n_users: int = 40, n_items: int = 12, seed: int = 0, longest: int = 15) -> LeaveOneOut:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, n_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    users = np.array([f"u{i}" for i in range(n_users)])
    return leave_one_out(Sequences(users, offsets, rng.integers(0, n_items, offsets[-1])))


def _model(config: RecommenderConfig = SMALL, n: int = 12) -> TransformerRecommender:
    torch.manual_seed(0)
    model = SASREC.build(config, Items(torch.ones(n, dtype=torch.long))).eval()
    assert isinstance(model, TransformerRecommender)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_ranks_follow_the_stated_rule(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]], dtype=dtype).repeat(5, 1)
    expected = []
    for target in range(5):
        order = sorted(range(5), key=lambda i: (-float(scores[0, i]), i))
        expected.append(order.index(target) + 1)
    assert rank_of(scores, torch.arange(5)).tolist() == expected


@pytest.mark.parametrize("top", [0, 3], ids=["products", "scores"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_evaluation_equals_brute_force(exclude_seen: bool, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: by products in tiles, and by whole rows of scores where the best are asked for."""
    module = sys.modules[evaluate.__module__]
    monkeypatch.setattr(module, "_HELD", 9)
    monkeypatch.setattr(module, "_POSITIONS", 20)
    split, model = _split(), _model()
    items = model.items()
    for which in ("valid", "test"):
        found = evaluate(model, split, which, exclude_seen=exclude_seen, top=top, batch=7)
        for user, rank in zip(found.users, found.ranks, strict=True):
            history = split.train.of(user).tolist() + ([split.valid[user]] if which == "test" else [])
            target = getattr(split, which)[user]
            window = torch.tensor(history[-SMALL.max_len :])
            with torch.no_grad():
                scores = (model(items, window[None])[0, -1] @ items.T).tolist()
            rivals = [i for i in range(12) if not (exclude_seen and i in history and i != target)]
            order = sorted(rivals, key=lambda i: (-scores[i], i))
            assert order.index(target) + 1 == rank


@given(
    n=st.integers(1, 40),
    users=st.integers(0, 30),
    tile=st.integers(1, 12),
    together=st.integers(1, 7),
    left_out=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_of_products_in_tiles_follow_the_rule(
    n: int, users: int, tile: int, together: int, left_out: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers, so that many scores are equal and every product is exact."""
    monkeypatch.setattr("earec_core.recommend.ranking._ITEMS", tile)
    monkeypatch.setattr("earec_core.recommend.ranking._USERS", together)
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randint(-2, 3, (size, 2), generator=draw).float() for size in (users, n))
    targets = torch.randint(n, (users,), generator=draw)
    seen = [
        torch.randint(n, (int(size),), generator=draw) for size in torch.randint(4, (users,), generator=draw)
    ]
    found = ranks_by_products(queries, keys, targets, seen if left_out else None)
    for user, target in enumerate(targets.tolist()):
        scores = (keys @ queries[user]).tolist()
        gone = set(seen[user].tolist()) - {target} if left_out else set()
        order = sorted(set(range(n)) - gone, key=lambda item: (-scores[item], item))
        assert found[user] == order.index(target) + 1


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(EarecError, match="not numbers"):
        rank_of(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
    whole, target = torch.ones(1, 2), torch.tensor([0])
    for harm in (float("nan"), float("inf"), 3e38):
        broken = torch.tensor([[1.0, 1.0], [harm, -harm]])
        with pytest.raises(EarecError, match="not numbers"):
            ranks_by_products(whole, broken, target)
        with pytest.raises(EarecError, match="not numbers"):
            ranks_by_products(broken[1:], whole, target)


@pytest.mark.parametrize("name", ["sasrec", "esasrec"])
def test_a_users_state_is_that_of_the_last_position_of_all(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name].build(SMALL, Items(torch.ones(12, dtype=torch.long))).eval()
    assert isinstance(model, TransformerRecommender)
    items, lengths = model.items(), [1, 4, 6, 9]
    histories = [torch.randint(12, (length,)) for length in lengths]
    with torch.inference_mode():
        states = model.users(histories, items)
        for history, state in zip(histories, states, strict=True):
            torch.testing.assert_close(state, model(items, history[None, -SMALL.max_len :])[0, -1])


@pytest.mark.parametrize("n", [1, 37])
def test_the_chunked_softmax_equals_cross_entropy(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullSoftmax, "chunk_elements", 50)
    found = []
    for own in (True, False):
        torch.manual_seed(1)
        states = torch.randn(n, 5, requires_grad=True)
        items = torch.randn(11, 5, requires_grad=True)
        targets = torch.randint(11, (n,))
        if own:
            loss = FullSoftmax.apply(states, items, targets)
        else:
            loss = F.cross_entropy(states @ items.T, targets, reduction="sum")
        (loss * 0.3).backward()
        found.append((loss.detach(), states.grad, items.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_all_positions_at_once_equal_one_row_per_prefix(similarity: str) -> None:
    model = _model(config=SMALL.model_copy(update={"similarity": similarity}))
    windows = [np.array([1, 4, 2, 9]), np.array([3, 3])]
    loss, count = model.loss(windows)
    items = model.items()
    expected = torch.zeros(())
    for window in windows:
        for end in range(1, len(window)):
            state = model(items, torch.from_numpy(window[:end])[None])[0, -1:]
            expected = expected + F.cross_entropy(model.scores(state, items), torch.tensor([window[end]]))
    assert count == 4
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("similarity", ["inner", "cosine"])
@pytest.mark.parametrize("kind", ["sasrec", "earec"])
def test_an_item_that_nobody_chose_is_left_alone_where_it_does_not_compete(
    kind: str, similarity: str
) -> None:
    config = SMALL.model_copy(update={"similarity": similarity, "candidates": "trained", "table": "mlp+ids"})
    counts = torch.tensor([0, 2, 1, 2, 1, 0, 0, 3, 1, 1, 1, 0])
    rows = counts.nonzero().squeeze(1).tolist()
    torch.manual_seed(0)
    vectors = torch.randn(12, 6) if kind == "earec" else None
    model = MODELS[kind].build(config, Items(counts, vectors)).eval()
    assert isinstance(model, TransformerRecommender)
    loss, count = model.loss([np.array([1, 4, 2, 9])])
    items = model.items()
    states = model(items, torch.tensor([[1, 4, 2]]))[0]
    scores = model.scores(states, items)[:, rows]
    expected = F.cross_entropy(scores, torch.tensor([rows.index(i) for i in (4, 2, 9)]), reduction="sum")
    assert count == 3
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    loss.backward()
    embedding = next(p for name, p in model.named_parameters() if name.endswith("embedding"))
    assert embedding.grad is not None
    assert not embedding.grad[counts == 0].any()
    assert embedding.grad[7].any()


@pytest.mark.parametrize("candidates", ["catalog", "trained"])
def test_a_logit_adjustment_is_part_of_the_scores_in_training_alone(candidates: str) -> None:
    counts = torch.tensor([0, 2, 1, 2, 1, 0, 0, 3, 1, 1, 1, 0])
    changed = {"similarity": "cosine", "candidates": candidates, "logit_adjustment": 0.5}
    torch.manual_seed(0)
    adjusted = MODELS["sasrec"].build(SMALL.model_copy(update=changed), Items(counts, None)).eval()
    torch.manual_seed(0)
    plain = (
        MODELS["sasrec"].build(SMALL.model_copy(update={"similarity": "cosine"}), Items(counts, None)).eval()
    )
    loss, _ = adjusted.loss([np.array([1, 4, 2, 9])])
    assert isinstance(plain, TransformerRecommender)
    items = plain.items()
    scores = plain.scores(plain(items, torch.tensor([[1, 4, 2]]))[0], items)
    share = torch.tensor([1, 2, 1, 2, 1, 1, 1, 3, 1, 1, 1, 1]) / 12
    scores = scores + 0.5 * share.log()
    if candidates == "trained":
        scores[:, counts == 0] = -torch.inf
    torch.testing.assert_close(
        loss, F.cross_entropy(scores, torch.tensor([4, 2, 9]), reduction="sum"), atol=1e-4, rtol=1e-5
    )
    users = [torch.tensor([1, 4])]
    torch.testing.assert_close(adjusted.users(users, items), plain.users(users, items))


def test_a_sampled_softmax_is_the_whole_one_in_expectation() -> None:
    torch.manual_seed(0)
    states, items = torch.randn(1, 4), torch.randn(7, 4)
    target = torch.tensor([3])
    whole = F.cross_entropy(states @ items.T, target).exp()
    sampled = [
        sampled_softmax(states, items, target, torch.tensor(drawn), 7).exp()
        for drawn in combinations(range(7), 2)
    ]
    torch.testing.assert_close(torch.stack(sampled).mean(), whole)


def test_each_prediction_may_have_a_sample_of_its_own() -> None:
    torch.manual_seed(0)
    states, items, targets = torch.randn(4, 8), torch.randn(20, 8), torch.tensor([3, 7, 1, 3])
    samples = torch.randint(20, (4, 5))
    each = [
        sampled_softmax(states[[row]], items, targets[[row]], sample, 20)
        for row, sample in enumerate(samples)
    ]
    torch.testing.assert_close(sampled_softmax(states, items, targets, samples, 20), torch.stack(each).sum())


@pytest.mark.parametrize("kind", ["sasrec", "earec"])
@pytest.mark.parametrize("candidates", ["catalog", "trained"])
def test_where_all_are_drawn_the_sampled_softmax_is_the_whole_one(kind: str, candidates: str) -> None:
    changed = {"candidates": candidates, "logit_adjustment": 0.5, "table": "mlp+ids"}
    items = Items(
        torch.tensor([0, 2, 1, 2, 1, 0, 0, 3, 1, 1, 1, 0]), torch.randn(12, 6) if kind == "earec" else None
    )
    losses, gradients = [], []
    for negatives in (None, 12):
        torch.manual_seed(0)
        config = SMALL.model_copy(update={**changed, "negatives": negatives})
        model = MODELS[kind].build(config, items).eval()
        loss, count = model.loss([np.array([1, 4, 2, 9]), np.array([7, 7, 1])])
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert count == 5
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_a_training_with_sampled_negatives_learns_and_resumes_to_the_same(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"negatives": 4, "epochs": 4, "dropout": 0.1})
    whole = train(SASREC, _split(), 12, config)
    train(SASREC, _split(), 12, config.model_copy(update={"epochs": 2}), checkpoint=tmp_path / "c")
    resumed = train(SASREC, _split(), 12, config, checkpoint=tmp_path / "c")
    assert [e.loss for e in resumed.history] == pytest.approx([e.loss for e in whole.history], abs=1e-6)
    assert whole.history[-1].loss < whole.history[0].loss


def test_no_position_sees_a_later_one() -> None:
    model = _model()
    items = model.items()
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 7, 8]])
    torch.testing.assert_close(model(items, one)[:, :2], model(items, other)[:, :2])


def test_a_block_equals_torch() -> None:
    model = _model()
    ours = model.layers[0]
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation="gelu", batch_first=True).eval()
    theirs = layer.state_dict()
    for name, module in (("linear1", ours.up), ("linear2", ours.down), ("norm1", ours.norm_attention)):
        theirs[f"{name}.weight"], theirs[f"{name}.bias"] = module.weight, module.bias
    theirs["norm2.weight"], theirs["norm2.bias"] = ours.norm.weight, ours.norm.bias
    theirs["self_attn.in_proj_weight"], theirs["self_attn.in_proj_bias"] = ours.qkv.weight, ours.qkv.bias
    theirs["self_attn.out_proj.weight"], theirs["self_attn.out_proj.bias"] = ours.out.weight, ours.out.bias
    layer.load_state_dict(theirs)
    x = torch.randn(3, 5, 8)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(ours(x), layer(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)
    # While training, attention is written out; without dropout it is the same.
    ours.train()
    torch.testing.assert_close(ours(x), layer(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)
    # The branch that drops, at a probability that rounds to never.
    ours.dropout.p = 1e-9
    torch.testing.assert_close(ours(x), layer(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_drops_that_part_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(p), torch.ones(333, 301, requires_grad=True)
    dropped = dropout(x)
    error = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float((dropped == 0).float().mean()) - p) < 5 * error
    assert abs(float((dropped[:, 0] == 0).float().mean()) - p) < 5 * (p * (1 - p) / 333) ** 0.5
    kept = dropped[dropped != 0].detach()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    dropped.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dropped.detach())
    torch.testing.assert_close(dropout.eval()(x), x)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="dim 9 is no multiple of heads 2"):
        RecommenderConfig(dim=9)


def test_windows_cover_every_transition_once() -> None:
    split = _split(longest=40)
    seen = [
        pair
        for batch in epoch_batches(split.train, SMALL, np.random.default_rng(3))
        for window in batch
        for pair in pairwise(window)
    ]
    wanted = [
        p
        for u in range(len(split.train))
        for p in zip(split.train.of(u)[:-1], split.train.of(u)[1:], strict=True)
    ]
    assert sorted(seen) == sorted(wanted)


def test_a_markov_chain_is_learned() -> None:
    n = 20
    sequences = np.array([[(start + i) % n for i in range(8)] for start in range(n)] * 5)
    offsets = np.arange(0, sequences.size + 1, 8)
    split = leave_one_out(Sequences(np.arange(len(sequences)).astype(str), offsets, sequences.ravel()))
    config = RecommenderConfig(dim=16, dropout=0.0, lr=0.01, epochs=60, patience=60, max_len=10)
    trained = train(SASREC, split, n, config)
    assert evaluate(trained.model, split, "test").hr(1) > 0.9


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    split = _split()
    config = SMALL.model_copy(update={"dropout": 0.3, "epochs": 5, "patience": 5})
    whole = train(SASREC, split, 12, config)

    class KilledError(Exception):
        pass

    def kill(stats: object) -> None:
        if stats.epoch == 2:  # type: ignore[attr-defined]
            raise KilledError

    with pytest.raises(KilledError):
        train(SASREC, split, 12, config, checkpoint=tmp_path / "c", progress=kill)
    said: list[int] = []
    resumed = train(SASREC, split, 12, config, checkpoint=tmp_path / "c", resumed=said.append)
    assert said == [2]
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_the_best_epoch_is_kept() -> None:
    split = _split()
    trained = train(SASREC, split, 12, SMALL.model_copy(update={"epochs": 8, "patience": 2}))
    best = max(trained.history, key=lambda e: e.ndcg10)
    assert trained.best_epoch == best.epoch
    assert evaluate(trained.model, split, "valid").ndcg(10) == pytest.approx(best.ndcg10)


def test_frozen_vectors_stay_as_they_are() -> None:
    vectors = torch.randn(12, 30) * 100 + 5
    trained = train(EAREC, _split(), 12, SMALL, vectors=vectors.clone())
    torch.testing.assert_close(trained.model.table.vectors, scaled(vectors, SMALL))


@pytest.mark.parametrize("vectors", [None, torch.randn(12, 30)], ids=["ids", "vectors"])
@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_a_stored_recommender_answers_as_the_trained_one_does(
    vectors: torch.Tensor | None, similarity: str, tmp_path: Path
) -> None:
    kind = SASREC if vectors is None else EAREC
    split, config = _split(), SMALL.model_copy(update={"similarity": similarity})
    trained = train(kind, split, 12, config, vectors=vectors)
    trained.save(tmp_path)
    again = TrainedRecommender.load(tmp_path)
    assert (again.name, again.model.config) == (kind.name, config)
    assert not any("vectors" in name for name in load_file(tmp_path / "model.safetensors"))
    ranks = [evaluate(one.model, split, "test").ranks for one in (trained, again)]
    np.testing.assert_array_equal(*ranks)
    _same(Retriever(trained.model, IDS), Retriever.open(tmp_path, IDS))


def test_the_stored_index_is_read_and_one_that_is_not_there_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SASREC, _split(), 12, SMALL).save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "earec_core.recommend.retriever.index_of", lambda *_: pytest.fail("it builds the index")
        )
        stored = Retriever.open(tmp_path, IDS)
    (tmp_path / "index.faiss").unlink()
    _same(stored, Retriever.open(tmp_path, IDS))


def test_one_stored_before_there_was_a_table_of_models_is_loaded(tmp_path: Path) -> None:
    trained = train(EAREC, _split(), 12, SMALL, vectors=torch.randn(12, 30))
    trained.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("model") == "earec"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "index.faiss").unlink()
    _same(Retriever(trained.model, IDS), Retriever.open(tmp_path, IDS))


@pytest.mark.parametrize("fault", ["bytes", "other items", "other catalog"])
def test_an_index_or_a_catalog_that_does_not_belong_is_said(fault: str, tmp_path: Path) -> None:
    train(SASREC, _split(), 12, SMALL).save(tmp_path)
    file, ids = tmp_path / "index.faiss", IDS
    if fault == "bytes":
        file.write_bytes(file.read_bytes()[:40])
    elif fault == "other items":
        other = _model(n=11)
        write_index(build_index(keys_of(other, other.items())).faiss, file)
    else:
        ids = IDS[1:]
    with pytest.raises(IntegrityError, match=r"cannot be read|12 items"):
        Retriever.open(tmp_path, ids)


def _same(a: Retriever, b: Retriever) -> None:
    histories = [torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
    for mine, other in zip(*(one.recommend(histories, 4) for one in (a, b)), strict=True):
        assert mine.ids == other.ids == tuple(IDS[row] for row in mine.rows)
        assert np.array_equal(mine.rows, other.rows)
        assert np.array_equal(mine.scores, other.scores)


@pytest.mark.parametrize("broken", ["setting", "layers"])
def test_a_recommender_of_another_version_is_said(broken: str, tmp_path: Path) -> None:
    train(SASREC, _split(), 12, SMALL).save(tmp_path)
    if broken == "setting":
        settings = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**settings, "standardise": True}))
    else:
        state = load_file(tmp_path / "model.safetensors")
        save_file({f"old.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="another version"):
        TrainedRecommender.load(tmp_path)


@pytest.mark.parametrize("similarity", ["inner", "cosine"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_recommendations_equal_a_brute_force_ranking(similarity: str, exclude_seen: bool) -> None:
    model = _model(SMALL.model_copy(update={"similarity": similarity}))
    retriever = Retriever(model, IDS)
    histories = [torch.tensor([1, 2, 3]), torch.tensor([4, 4, 5, 6, 7, 8, 9]), torch.tensor([11])]
    items = model.items().detach().double().numpy()
    for k in (1, 4, 12):
        rankings = retriever.recommend(histories, k, exclude_seen=exclude_seen)
        for history, ranking in zip(histories, rankings, strict=True):
            with torch.no_grad():
                state = model(model.items(), history[-SMALL.max_len :][None])[0, -1].double().numpy()
            expected = items @ state
            if similarity == "cosine":
                expected /= np.linalg.norm(items, axis=1) * np.linalg.norm(state) * SMALL.temperature
            rivals = [i for i in range(12) if not (exclude_seen and i in history.tolist())]
            order = sorted(rivals, key=lambda i: -expected[i])[:k]
            assert ranking.rows.tolist() == order
            np.testing.assert_allclose(ranking.scores, expected[order], rtol=1e-4)


def test_a_user_without_items_is_refused() -> None:
    with pytest.raises(UsageError, match="without items"):
        Retriever(_model(), IDS).recommend([torch.tensor([1]), torch.tensor([], dtype=torch.long)], 2)


def test_items_are_computed_once_for_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = _model(), []
    items = model.items
    monkeypatch.setattr(model, "items", lambda: calls.append(1) or items())
    retriever = Retriever(model, IDS)
    opened = len(calls)
    for row in range(3):
        retriever.recommend([torch.tensor([row])], 2)
    assert len(calls) == opened


def test_users_without_targets_are_not_evaluated() -> None:
    split = leave_one_out(Sequences(np.array(["a", "b"]), np.array([0, 2, 5]), np.array([0, 1, 2, 3, 4])))
    assert split.eval_users.tolist() == [1]
    assert split.train.of(0).tolist() == [0, 1]
    assert split.train.of(1).tolist() == [2]
    assert (split.valid[1], split.test[1]) == (3, 4)


def test_nothing_to_learn_from_is_said() -> None:
    split = leave_one_out(Sequences(np.array(["a"]), np.array([0, 1]), np.array([0])))
    with pytest.raises(DataError, match="two training interactions"):
        train(SASREC, split, 3, SMALL)
