"""Popularity and the Markov chain against counting by hand; they are stored and served like others."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from earec_core.catalog import LeaveOneOut, Sequences, import_dataset
from earec_core.catalog.splits import leave_one_out
from earec_core.cli import run
from earec_core.config import RecommenderConfig
from earec_core.recommend import MODELS, Retriever, TrainedRecommender, evaluate, train

N = 15
IDS = [f"i{row}" for row in range(N)]
COSINE = RecommenderConfig(similarity="cosine")


def _split() -> LeaveOneOut:
    """Users of whom some have done nothing, and items of which the last was never chosen in training."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 12, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.choice(N - 1, offsets[-1], p=np.arange(1, N) / np.arange(1, N).sum())
    return leave_one_out(Sequences(np.array([f"u{i}" for i in range(60)]), offsets, items))


def _order(name: str, split: LeaveOneOut, last: int) -> list[int]:
    """All items, best first, by the definition."""
    rows = [split.train.of(user).tolist() for user in range(len(split.train))]
    counts = Counter(item for row in rows for item in row)
    after = Counter(b for row in rows for a, b in pairwise(row) if a == last) if name == "markov" else {}
    return sorted(range(N), key=lambda i: (-after.get(i, 0), -counts[i], i))


@pytest.mark.parametrize("config", [RecommenderConfig(), COSINE], ids=["inner", "cosine"])
@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("name", ["popularity", "markov"])
def test_ranks_are_those_of_counting_by_hand(name: str, part: str, config: RecommenderConfig) -> None:
    split = _split()
    trained = train(MODELS[name], split, N, config)
    found = evaluate(trained.model, split, part, batch=7)  # type: ignore[arg-type]
    expected = []
    for user in found.users:
        history = [*split.train.of(user), *([split.valid[user]] if part == "test" else [])]
        expected.append(_order(name, split, history[-1]).index(getattr(split, part)[user]) + 1)
    assert found.ranks.tolist() == expected
    assert (trained.history, trained.best_epoch) == ((), 0)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("name", ["popularity", "markov"])
def test_what_is_served_is_what_is_ranked(name: str, exclude_seen: bool, tmp_path: Path) -> None:
    split = _split()
    trained = train(MODELS[name], split, N, RecommenderConfig())
    trained.save(tmp_path)
    assert not (tmp_path / "index.faiss").exists()
    assert TrainedRecommender.load(tmp_path).name == name
    histories = [torch.tensor([1, 13, 2]), torch.tensor([14]), torch.tensor([0, 12])]
    for retriever in (Retriever(trained.model, IDS), Retriever.open(tmp_path, IDS)):
        rankings = retriever.recommend(histories, 6, exclude_seen=exclude_seen)
        for history, ranking in zip(histories, rankings, strict=True):
            seen = history.tolist() if exclude_seen else []
            order = [i for i in _order(name, split, int(history[-1])) if i not in seen]
            assert ranking.rows.tolist() == order[:6]
            assert ranking.ids == tuple(IDS[row] for row in order[:6])
            assert np.all(np.diff(ranking.scores) <= 0)


def test_popularity_never_counts_for_a_transition() -> None:
    """Item 2 is chosen a hundred times as often as 1, but 1 has followed 0 once more."""
    rows = [[0, 1], [0, 1], [0, 2], *[[2, 2]] * 100]
    sequences = Sequences(
        np.arange(len(rows)).astype(str), np.arange(0, 2 * len(rows) + 1, 2), np.ravel(rows)
    )
    model = train(MODELS["markov"], leave_one_out(sequences), 3, RecommenderConfig()).model
    items = model.items()
    scores = model.scores(model.users([torch.tensor([0]), torch.tensor([1])], items), items)
    assert scores.argsort(dim=1, descending=True).tolist() == [[1, 2, 0], [2, 0, 1]]


def test_the_commands_train_and_serve_them_and_tune_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.jsonl").write_text(
        "\n".join(json.dumps({"item_id": i, "title": f"thing {i}"}) for i in IDS)
    )
    lines = [f"u{user},i{(user + step) % N},{step}" for user in range(N) for step in range(5)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    import_dataset(source, tmp_path / "data", core=1)
    common = ["--data", str(tmp_path / "data"), "--json"]
    assert run(["recommend", "train", "--model", "markov", *common, "--name", "m"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert (trained["epochs"], trained["test"]["hr@10"]) == (0, 1.0)
    assert run(["recommend", "topk", "m", *common, "--user", "u3", "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["item_id"] == "i8"
    assert run(["recommend", "tune", "--model", "popularity", *common]) == 2
    assert "'popularity' has no parameters to tune" in capsys.readouterr().err
    assert run(["recommend", "train", "--model", "markov", *common, "--vectors", "v"]) == 2
