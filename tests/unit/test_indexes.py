"""Indexes over items: which one, what it finds, and that what must not come back does not; against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend import MODELS, Retriever, indexes
from earec_core.recommend.indexes import (
    ItemIndex,
    build_index,
    choose_index,
    index_of,
    keys_of,
    open_index,
    recall,
)
from earec_core.recommend.similar import Neighbours
from earec_core.recommend.tables import Items

N, D = 2500, 16
CONFIG = RecommenderConfig(dim=D, inner=16, dropout=0.0, max_len=6, epochs=1, scaling="none")
FOUND = {"flat": 1.0, "hnsw": 0.98, "ivfpq": 0.9}
"""The least that each finds of the ten best of clustered vectors."""


@pytest.fixture(autouse=True)
def _learns_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_TRAINING", 8)


def _clustered(n: int = N) -> np.ndarray:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(50, D))
    return (centres[rng.integers(0, 50, n)] + 0.3 * rng.normal(size=(n, D))).astype(np.float32)


def _unit(table: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(table / np.linalg.norm(table, axis=1, keepdims=True))


def _model(table: np.ndarray) -> Any:
    """SASRec whose items are these."""
    torch.manual_seed(0)
    model = MODELS["sasrec"].build(CONFIG, Items(torch.ones(len(table), dtype=torch.long))).eval()
    items = torch.from_numpy(table)
    model.items = lambda: items
    return model


def _histories(count: int = 60) -> list[torch.Tensor]:
    rng = np.random.default_rng(2)
    return [torch.from_numpy(rng.choice(N, rng.integers(1, 40), replace=False)) for _ in range(count)]


def _best(model: Any, history: torch.Tensor, allowed: set[int], k: int) -> tuple[list[int], np.ndarray]:
    with torch.inference_mode():
        scores = model.scores(model.users([history], model.items()), model.items())[0].numpy()
    return sorted(allowed, key=lambda row: -scores[row])[:k], scores


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_recommendations_are_the_best_and_nothing_else(kind: str, exclude_seen: bool) -> None:
    model = _model(_clustered())
    # The catalog lacks every second of the model's items, and has five that the model does not know.
    known = np.concatenate([np.arange(0, N, 2), np.full(5, -1)])
    retriever = Retriever(
        model, [f"i{n}" for n in range(len(known))], index_of(model, model.items(), kind), known=known
    )
    histories = [torch.from_numpy(np.flatnonzero(np.isin(known, history))) for history in _histories()]
    histories = [history for history in histories if len(history)]
    hits, k = 0, 10
    for history, ranking in zip(
        histories, retriever.recommend(histories, k, exclude_seen=exclude_seen), strict=True
    ):
        seen = set(known[history.numpy()].tolist()) if exclude_seen else set()
        allowed = set(known[known >= 0].tolist()) - seen
        rows = known[ranking.rows]
        assert len(set(rows)) == k
        assert set(rows) <= allowed
        best, scores = _best(model, torch.from_numpy(known[history.numpy()]), allowed, k)
        np.testing.assert_allclose(ranking.scores, scores[rows], rtol=1e-4, atol=1e-5)
        assert (np.diff(ranking.scores) <= 1e-6).all()
        assert ranking.ids == tuple(f"i{row}" for row in ranking.rows)
        hits += len(set(rows) & set(best))
    assert hits / (k * len(histories)) >= FOUND[kind]


@pytest.mark.parametrize("kind", FOUND)
def test_as_many_come_back_as_there_are(kind: str) -> None:
    """Few items in few lists, or far from where a graph is entered, are found all the same."""
    model = _model(_clustered())
    known = np.array([3, 700, 1400, 2100, 2400])
    retriever = Retriever(model, list("abcde"), index_of(model, model.items(), kind), known=known)
    (ranking,) = retriever.recommend([torch.tensor([1])], 10)
    best, _ = _best(model, torch.tensor([700]), {3, 1400, 2100, 2400}, 10)
    assert known[ranking.rows].tolist() == best


@pytest.mark.parametrize("kind", FOUND)
def test_further_items_are_found_and_the_retriever_of_before_is_as_it_was(kind: str) -> None:
    model = _model(_clustered())
    before = Retriever(model, [str(n) for n in range(N)], index_of(model, model.items(), kind))
    user = model.users([torch.tensor([5])], model.items())
    new = torch.cat([user * 100, -user])
    after = before.with_items(["best", "worst"], new)
    assert after.recommend([torch.tensor([5])], 3)[0].ids[0] == "best"
    assert "best" not in before.recommend([torch.tensor([5])], 3)[0].ids
    assert (after.index.kind, len(after.index), len(before.index)) == (kind, N + 2, N)  # type: ignore[union-attr, arg-type]


def test_the_recall_that_is_told_is_that_of_brute_force() -> None:
    model, histories = _model(_clustered()), _histories()
    keys = keys_of(model, model.items())
    for kind in ("hnsw", "ivfpq"):
        index = build_index(keys, kind, rescored=False)
        retriever = Retriever(model, [str(n) for n in range(N)], index)
        shared = []
        with torch.inference_mode():
            users = model.users(histories, model.items()).numpy()
        for user, row in zip(users, index.search(users, 10)[1], strict=True):
            shared.append(len({*row.tolist()} & {*np.argsort(-(keys @ user))[:10].tolist()}) / 10)
        assert retriever.recall(histories) == pytest.approx(np.mean(shared), abs=2e-3)
        assert kind == "hnsw" or retriever.recall(histories) < 0.9  # type: ignore[operator]
    assert Retriever(model, [str(n) for n in range(N)]).recall(histories) == 1


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_recall_of_items_among_themselves_is_that_of_brute_force(kind: str) -> None:
    unit = _unit(_clustered())
    index = build_index(unit, kind, rescored=False)
    rows = indexes.sampled(N)
    assert len(rows) == 1000
    cosines = unit[rows] @ unit.T
    cosines[np.arange(1000), rows] = -2
    truth = np.argsort(-cosines, axis=1)[:, :10]
    _, found = index.search(unit[rows], 11)
    others = [row[row != item][:10] for row, item in zip(found, rows, strict=True)]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(others, truth, strict=True)])
    measured = recall(index, unit, unit[rows], rows)
    assert measured == pytest.approx(shared, abs=2e-4)
    assert measured > {"hnsw": 0.98, "ivfpq": 0.3}[kind]
    assert measured < 1 or kind == "hnsw"


def test_items_that_are_equally_near_count_as_found() -> None:
    unit = np.repeat(np.eye(4, dtype=np.float32), 20, axis=0)
    assert recall(build_index(unit), unit, unit, np.arange(80)) == 1


@pytest.mark.parametrize("kind", ["auto", *FOUND])
def test_neighbours_are_those_of_the_largest_cosine(kind: str) -> None:
    table = _clustered()
    table[7] = 0
    neighbours = Neighbours.of(table, CONFIG, index=kind)
    assert (neighbours.index is None) == (kind in ("auto", "flat"))
    known = np.delete(np.arange(N), 7)
    unit = np.zeros_like(table)
    unit[known] = _unit(table[known])
    hits = 0
    for row in range(100, 160):
        found = neighbours.nearest(row, 10)
        cosines = unit @ unit[row]
        best = [other for other in np.argsort(-cosines, kind="stable") if other not in (row, 7)][:10]
        assert row not in dict(found)
        assert [cosine for _, cosine in found] == pytest.approx(
            [cosines[other] for other, _ in found], abs=1e-5
        )
        hits += len(set(dict(found)) & set(best))
    assert hits / 600 >= FOUND.get(kind, 1.0)
    assert neighbours.recall() >= FOUND.get(kind, 1.0)
    grown = neighbours.with_items(N, table[9][None] * 3)
    assert grown.nearest(9, 1)[0] == (N, pytest.approx(1))
    with pytest.raises(UsageError, match="no vector"):
        neighbours.nearest(7, 3)


def test_auto_is_by_number_and_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_index(100_000, 4096)[0] == "flat"
    assert choose_index(100_001, 576)[0] == "hnsw"
    assert choose_index(5_000_000, 576)[0] == "ivfpq"
    assert choose_index(600_000, 4096)[0] == "ivfpq"
    table = _clustered()
    model = _model(table)
    with pytest.raises(UsageError, match=r"no index 'tree'\. Choose auto, flat, hnsw, ivfpq"):
        build_index(table, "tree")
    for most, memory, kind in ((N, 1 << 30, "flat"), (50, 1 << 30, "hnsw"), (50, 1 << 10, "ivfpq")):
        monkeypatch.setattr(indexes, "_FLAT_ITEMS", most)
        monkeypatch.setattr(indexes, "_HNSW_BYTES", memory)
        opened = [Retriever(model, [str(n) for n in range(N)]).index, Neighbours.of(table, CONFIG).index]
        assert [index and index.kind for index in opened] == [kind, None if kind == "flat" else kind]


def test_too_few_items_and_scores_that_are_no_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(_clustered(100))
    with pytest.raises(UsageError, match="2,048 items at least; there are 100"):
        index_of(model, model.items(), "ivfpq")
    monkeypatch.setattr(type(model), "inner_product", property(lambda _: False))
    assert index_of(model, model.items()) is None
    with pytest.raises(UsageError, match="has no index"):
        index_of(model, model.items(), "hnsw")


def test_an_index_is_built_once_for_the_same_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, table = [], _unit(_clustered(400))
    for kind, build in dict(indexes.INDEXES).items():
        counted = lambda vectors, kind=kind, build=build: built.append(kind) or build(vectors)  # noqa: E731
        monkeypatch.setitem(indexes.INDEXES, kind, counted)  # type: ignore[arg-type]

    def opened(vectors: np.ndarray, kind: str = "hnsw") -> ItemIndex:
        return open_index(vectors, kind, tmp_path / "cache")

    first, again = opened(table), opened(table)
    assert built == ["hnsw"]
    np.testing.assert_array_equal(first.search(table[:20], 5)[1], again.search(table[:20], 5)[1])
    opened(table * 2)
    assert built == ["hnsw"] * 2
    for file in (tmp_path / "cache").glob("*/index.faiss"):
        file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(opened(table).search(table[:20], 1)[1][:, 0], np.arange(20))
    assert built == ["hnsw"] * 3
    opened(table, "flat")
    assert len(list((tmp_path / "cache").iterdir())) == 2
