"""MISSRec against its formulas, written out in loops; learned, stored and served."""

from __future__ import annotations

import json
from math import ceil, erf, exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.artifacts import ItemVectors, RecommenderManifest, open_as
from earec_core.catalog import Catalog, LeaveOneOut, Sequences
from earec_core.catalog.splits import leave_one_out
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend import MODELS, Items, Retriever, TrainedRecommender, evaluate, train
from earec_core.recommend import density_peaks as peaks
from earec_core.recommend.models import missrec
from earec_core.recommend.models.missrec import MissRec, beginnings
from earec_registry import Registry

KIND = MODELS["missrec"]
GROUPS, STEPS, WIDTHS = 6, 5, (12, 10)
N = GROUPS * STEPS
SMALL = RecommenderConfig(
    layers=4,
    heads=2,
    dim=8,
    inner=12,
    dropout=0.0,
    max_len=4,
    table="linear",
    scaling="none",
    id_dropout=0.0,
    temperature=0.5,
    interests=0.3,
    interest_neighbours=0.2,
)


def _vectors() -> torch.Tensor:
    """Two modalities side by side: what group an item is of, and what step of its group."""
    rng = np.random.default_rng(0)
    group = rng.standard_normal((GROUPS, WIDTHS[0])).repeat(STEPS, 0)
    step = np.tile(rng.standard_normal((STEPS, WIDTHS[1])), (GROUPS, 1))
    noise = 0.1 * rng.standard_normal((N, sum(WIDTHS)))
    return torch.from_numpy(np.hstack([group, step]) + noise).float()


def _rows() -> np.ndarray:
    """Users who go on to the next step of their group."""
    walks = [[g * STEPS + (s + t) % STEPS for t in range(6)] for g in range(GROUPS) for s in range(STEPS)]
    return np.array(walks * 4)


def _split() -> LeaveOneOut:
    rows = _rows()
    names = np.arange(len(rows)).astype(str)
    return leave_one_out(Sequences(names, np.arange(0, rows.size + 1, 6), rows.ravel()))


def _model(**changed: Any) -> MissRec:
    """A model of 30 items with weights all drawn; items 3 and 5 lack a modality each, item 7 both."""
    vectors = _vectors()
    vectors[[3, 7], : WIDTHS[0]] = 0
    vectors[[5, 7], WIDTHS[0] :] = 0
    counts = torch.ones(N, dtype=torch.long)
    counts[[4, 5]] = 0
    torch.manual_seed(0)
    model = KIND.build(SMALL.model_copy(update=changed), Items(counts, vectors, WIDTHS))
    assert isinstance(model, MissRec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def _clusters(points: np.ndarray, count: int, neighbours: int) -> list[int]:
    """Density peaks, point by point."""
    p, d = points.shape
    distance = np.array(
        [[np.linalg.norm(points[i] - points[j]) / sqrt(d) for j in range(p)] for i in range(p)]
    )
    density, separation = [], []
    for i in range(p):
        nearest = sorted(distance[i, j] ** 2 for j in range(p) if j != i)[:neighbours]
        density.append(exp(-sum(nearest) / len(nearest)))
    for i in range(p):
        denser = [j for j in range(p) if (density[j], -j) > (density[i], -i)]
        separation.append(min(distance[i, j] for j in denser) if denser else distance[i].max())
    order = sorted(range(p), key=lambda i: -density[i] * separation[i])
    centres = order[:count]
    return [
        centres.index(i) if i in centres else min(range(count), key=lambda c: distance[i, centres[c]])
        for i in range(p)
    ]


@pytest.mark.parametrize("chunk", [70, 1 << 24])
@pytest.mark.parametrize(("clusters", "neighbours"), [(1, 3), (5, 4), (20, 39), (39, 2)])
def test_clusters_are_those_of_the_densest_and_farthest_points(
    clusters: int, neighbours: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "_CHUNK", chunk)
    torch.manual_seed(0)
    points = torch.randn(40, 6) + 3 * torch.randint(3, (40, 1))
    found = peaks.density_peaks(points, clusters, neighbours)
    assert found.tolist() == _clusters(_array(points), clusters, neighbours)


def test_equal_points_are_one_cluster_while_there_are_others() -> None:
    torch.manual_seed(0)
    points = torch.randn(5, 4)[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    found = peaks.density_peaks(points, 5, 2)
    assert sorted(found[:5].tolist()) == list(range(5))
    assert torch.equal(found[:5], found[5:])
    assert peaks.density_peaks(points, 10, 2).tolist() == list(range(10))
    assert peaks.density_peaks(points[:1], 1, 1).tolist() == [0]


def _adapted(model: MissRec) -> list[list[np.ndarray | None]]:
    """Of each item each modality's linear map of its vector, None where it lacks it, then its id's embedding."""
    vectors, items = _array(_vectors()), []
    parts = np.split(vectors, [WIDTHS[0]], axis=1)
    for row in range(N):
        blocks: list[np.ndarray | None] = []
        for adaptor, part, lacking in zip(model.adaptors, parts, ((3, 7), (5, 7)), strict=True):
            layer = adaptor.table.adaptor
            known = _array(layer.weight) @ part[row] + _array(layer.bias)
            blocks.append(None if row in lacking else known)
        if model.ids is not None:
            blocks.append(None if row in (4, 5) else _array(model.ids.embedding)[row])
        items.append(blocks)
    return items


def _interests(items: list[list[np.ndarray | None]]) -> tuple[dict[tuple[int, int], int], list[np.ndarray]]:
    """Of each modality of an item the interest, and the interests: means of clusters."""
    places = [(row, m) for row in range(N) for m in range(2) if items[row][m] is not None]
    points = np.array([items[row][m] for row, m in places])
    count = ceil(SMALL.interests * len(points))
    clusters = _clusters(points, count, ceil(SMALL.interest_neighbours * len(points)))
    means = [points[[c == k for c in clusters]].mean(0) for k in range(count)]
    return dict(zip(places, clusters, strict=True)), means


def _norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    mean, deviation = x.mean(), sqrt(x.var() + layer.eps)
    return (x - mean) / deviation * _array(layer.weight) + _array(layer.bias)


def _attend(read: list[np.ndarray], seen: list[np.ndarray], layer: Any) -> list[np.ndarray]:
    """Multi-head attention of each of some vectors to all of others."""
    w, b, d = _array(layer.in_proj_weight), _array(layer.in_proj_bias), SMALL.dim
    joined = [np.empty(d) for _ in read]
    for head in range(SMALL.heads):
        size = d // SMALL.heads
        rows = [slice(part * d + head * size, part * d + (head + 1) * size) for part in range(3)]
        keys, values = ([w[r] @ x + b[r] for x in seen] for r in rows[1:])
        for i, x in enumerate(read):
            query = w[rows[0]] @ x + b[rows[0]]
            weights = np.array([exp(query @ key / sqrt(size)) for key in keys])
            mixed = sum(a * value for a, value in zip(weights / weights.sum(), values, strict=True))
            joined[i][head * size : (head + 1) * size] = mixed
    return [_array(layer.out_proj.weight) @ x + _array(layer.out_proj.bias) for x in joined]


def _feed(x: np.ndarray, layer: Any) -> np.ndarray:
    inner = _array(layer.linear1.weight) @ x + _array(layer.linear1.bias)
    gelu = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in inner])
    return _array(layer.linear2.weight) @ gelu + _array(layer.linear2.bias)


def _user(model: MissRec, history: list[int]) -> tuple[np.ndarray, float]:
    """A user's vector, and how alike the interests are."""
    history = history[-SMALL.max_len :]
    items = _adapted(model)
    belongs, means = _interests(items)
    own = sorted({belongs[row, m] for row in history for m in range(2) if (row, m) in belongs})
    memory = [means[k] for k in own] or [np.zeros(SMALL.dim)]
    for layer in model.encoder.layers:
        memory = [
            _norm(x + y, layer.norm1)
            for x, y in zip(memory, _attend(memory, memory, layer.self_attn), strict=True)
        ]
        memory = [_norm(x + _feed(x, layer), layer.norm2) for x in memory]
    memory = [_norm(x, model.encoder.norm) for x in memory]
    states = []
    for place, row in enumerate(history):
        read = sum((block for block in items[row] if block is not None), _array(model.positions)[place])
        states.append(_norm(read, model.norm))
    for layer in model.decoder.layers:
        states = [
            _norm(x + y, layer.norm1)
            for x, y in zip(states, _attend(states, states, layer.self_attn), strict=True)
        ]
        seen = _attend(states, memory, layer.multihead_attn)
        states = [_norm(x + y, layer.norm2) for x, y in zip(states, seen, strict=True)]
        states = [_norm(x + _feed(x, layer), layer.norm3) for x in states]
    alike = sum(x @ y for x in memory for y in memory) / SMALL.dim
    return _norm(states[-1], model.decoder.norm), alike


def _scores(model: MissRec, user: np.ndarray) -> np.ndarray:
    """Each item's modalities weighed by how well they suit the user, its id as one more; over the temperature."""
    scores = []
    for blocks in _adapted(model):
        cosines = [None if x is None else user @ x / np.linalg.norm(user) / np.linalg.norm(x) for x in blocks]
        known = [c for c in cosines[:2] if c is not None]
        identity = [c for c in cosines[2:] if c is not None]
        sharpness = 0.0 if model.config.fusion == "static" else float(model.sharpness.detach())
        weights = [exp(sharpness * c) for c in known]
        fused = sum(w * c for w, c in zip(weights, known, strict=True)) / sum(weights) if known else 0.0
        total = len(known) + len(identity)
        scores.append((len(known) * fused + sum(identity)) / total if total else 0.0)
    return np.array(scores) / SMALL.temperature


@pytest.mark.parametrize("fusion", ["dynamic", "static"])
@pytest.mark.parametrize("table", ["linear", "linear+ids"])
def test_users_and_scores_are_those_of_the_formulas(table: str, fusion: str) -> None:
    model = _model(table=table, fusion=fusion)
    histories = [[1], [7], [8, 9, 8], [3, 5, 7, 4], [20, 21, 22, 23, 24, 5]]
    items = model.items()
    found = model.users([torch.tensor(history) for history in histories], items)
    scores = model.scores(found, items)
    for row, history in enumerate(histories):
        expected, _ = _user(model, history)
        np.testing.assert_allclose(_array(found[row]), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(_array(scores[row]), _scores(model, expected), rtol=1e-4, atol=1e-4)
    if model.inner_product:
        torch.testing.assert_close(model.queries(found) @ model.keys(items).T, scores)


@pytest.mark.parametrize("fusion", ["dynamic", "static"])
def test_the_loss_is_of_every_beginning_and_of_its_interests(
    fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = [np.array([1, 2, 3, 4]), np.array([7, 5]), np.array([20, 20, 21])]
    model = _model(table="linear+ids", fusion=fusion)
    model.train()
    found, gradients = [], []
    for chunk in (1, 1 << 22):
        monkeypatch.setattr(missrec, "_CHUNK", chunk)
        model.zero_grad()
        loss, count = model.loss(windows)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    expected = 0.0
    for window in windows:
        for end in range(1, len(window)):
            user, alike = _user(model, window[:end].tolist())
            scores = _scores(model, user)
            expected += log(sum(map(exp, scores))) - scores[window[end]] + SMALL.interest_penalty * alike
    assert count == 6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert gradients[0].abs().max() > 0


def test_beginnings_are_all_of_them() -> None:
    sequences, lengths, targets = beginnings([np.array([4, 5, 6]), np.array([7, 8])])
    assert sequences.tolist() == [[4, 0], [4, 5], [7, 0]]
    assert (lengths.tolist(), targets.tolist()) == ([1, 2, 1], [5, 6, 8])


def test_interests_stay_for_an_epoch_and_are_of_the_weights_that_are_evaluated() -> None:
    model, windows, history = _model(), [np.array([1, 2, 3])], [torch.tensor([1, 2])]
    model.train()
    model.loss(windows)
    first = model.interests.clone()
    with torch.no_grad():
        model.adaptors[0].table.adaptor.weight.mul_(-1.5)
    model.loss(windows)
    torch.testing.assert_close(model.interests, first)
    model.eval()
    expected, _ = _user(model, [1, 2])
    np.testing.assert_allclose(_array(model.users(history, model.items())[0]), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.interests, first)


CONFIG = RecommenderConfig(
    dim=16,
    inner=32,
    dropout=0.1,
    lr=0.01,
    epochs=25,
    patience=25,
    max_len=8,
    scaling="standardise",
    table="linear",
    batch_size=256,
)


@pytest.mark.parametrize(
    ("table", "widths", "fusion"),
    [
        ("linear", WIDTHS, "dynamic"),
        ("linear+ids", WIDTHS, "dynamic"),
        ("linear", WIDTHS, "static"),
        ("mlp+ids", (), "dynamic"),
    ],
)
def test_it_learns_and_answers_when_stored_as_when_trained(
    table: str, widths: tuple[int, ...], fusion: str, tmp_path: Path
) -> None:
    config, split = CONFIG.model_copy(update={"table": table, "fusion": fusion}), _split()
    trained = train(KIND, split, N, config, vectors=_vectors(), widths=widths)
    metrics = evaluate(trained.model, split, "test")
    assert metrics.hr(1) > 0.5  # chance is 1 of 30
    trained.save(tmp_path)
    again = TrainedRecommender.load(tmp_path)
    assert (tmp_path / "index.faiss").exists() == (not widths or fusion == "static")
    np.testing.assert_array_equal(evaluate(again.model, split, "test").ranks, metrics.ranks)
    ids = [f"i{row}" for row in range(N)]
    histories = [torch.from_numpy(row[:5].copy()) for row in _rows()[:N]]
    own, stored = Retriever(trained.model, ids), Retriever.open(tmp_path, ids)
    with torch.inference_mode():
        items = again.model.items()
        scores = again.model.scores(again.model.users(histories, items), items)
    for a, b, row in zip(own.recommend(histories, 4), stored.recommend(histories, 4), range(N), strict=True):
        assert a.ids == b.ids
        best = [i for i in scores[row].argsort(descending=True).tolist() if i not in histories[row]][:4]
        assert a.rows.tolist() == best
        np.testing.assert_allclose(a.scores, scores[row, best].numpy(), rtol=1e-4, atol=1e-4)


def test_a_resumed_training_comes_to_the_same(tmp_path: Path) -> None:
    split, config = _split(), CONFIG.model_copy(update={"epochs": 4, "table": "linear+ids"})
    given = {"vectors": _vectors(), "widths": WIDTHS}
    whole = train(KIND, split, N, config, **given)

    def kill(stats: Any) -> None:
        if stats.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(KIND, split, N, config, **given, checkpoint=tmp_path / "c", progress=kill)
    resumed = train(KIND, split, N, config, **given, checkpoint=tmp_path / "c")
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    ranks = [evaluate(one.model, split, "test").ranks for one in (whole, resumed)]
    np.testing.assert_array_equal(*ranks)


def test_layers_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"3 is odd\. Set recommender\.layers"):
        _model(layers=3)


def test_a_modality_that_no_two_items_have_is_left_out() -> None:
    vectors, counts = _vectors(), torch.ones(N, dtype=torch.long)
    vectors[1:, WIDTHS[0] :] = 0
    model = KIND.build(SMALL, Items(counts, vectors, WIDTHS))
    assert model.items().shape == (N, SMALL.dim)
    with pytest.raises(UsageError, match="all zeros"):
        KIND.build(SMALL, Items(counts, torch.zeros(N, 4)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A catalog of these users."""
    source = tmp_path / "source"
    source.mkdir()
    items = [json.dumps({"item_id": f"i{row:02}", "title": f"thing {row}"}) for row in range(N)]
    (source / "items.jsonl").write_text("\n".join(items))
    lines = [f"u{u},i{item:02},{t}" for u, row in enumerate(_rows()) for t, item in enumerate(row)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    assert run(["data", "import", str(source), "--out", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def test_modalities_are_several_vectors_or_the_slots_of_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, catalog = Registry.open(tmp_path / "registry"), Catalog.open(data)
    a, b = (part.numpy() for part in torch.split(_vectors()[:, :20], 10, dim=1))
    kept = {"why": "", "method": "drawn"}
    parts = [
        ItemVectors.save(registry, one, catalog, name=f"v/{i}", **kept).id for i, one in enumerate((a, b))
    ]
    slots = {"why": "", "method": "slot-states", "modalities": {"one": {}, "other": {}}}
    both = ItemVectors.save(registry, np.hstack([a, b]), catalog, name="v/slots", **slots)
    assert both.widths == (10, 10)
    settings = {"dim": 16, "epochs": 2, "table": "linear", "scaling": "standardise", "max_len": 8}
    sets = [x for key, value in settings.items() for x in ("--set", f"recommender.{key}={value}")]
    common = ["--data", str(data), "--registry", str(tmp_path / "registry"), "--json"]
    found = {}
    for name, vectors in (("two", ["v/0", "v/1"]), ("slots", ["v/slots"])):
        given = [x for one in vectors for x in ("--vectors", one)]
        capsys.readouterr()
        argv = ["recommend", "train", "--model", "missrec", *given, *common, "--name", name, *sets]
        assert run(argv) == 0
        found[name] = json.loads(capsys.readouterr().out)["test"]
    assert found["two"] == found["slots"]
    assert open_as(registry, "two", RecommenderManifest).manifest.parents == tuple(parts)
    assert run(["recommend", "evaluate", "two", *common]) == 0
    assert json.loads(capsys.readouterr().out) == found["two"]
    assert run(["recommend", "topk", "two", *common, "--user", "u0", "-k", "3"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
