"""`recommend topk` on what a recommender was not trained on: later snapshots, new users and items, other data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from earec_core.artifacts import ItemVectors, RecommenderManifest, open_as, save
from earec_core.artifacts.tables import IDS
from earec_core.catalog import Catalog
from earec_core.cli import run
from earec_core.recommend.reasons import reasons, without_vectors
from earec_core.recommend.snapshots import by_vectors, over_vectors
from earec_core.recommend.transfer import Source
from earec_registry import Registry

N, D = 24, 6
VECTORS = {
    f"i{row:02}": vector for row, vector in enumerate(np.random.default_rng(1).normal(size=(N + 8, D)))
}
NEW = [f"i{row:02}" for row in range(N, N + 6)]
SETS = [f"--set=recommender.{pair}" for pair in ("epochs=4", "dim=8", "lr=0.05", "scaling=standardise")]


def _import(home: Path, name: str, items: Sequence[str], uses: Sequence[tuple[str, str]]) -> Catalog:
    """A catalog of these items in this order, users' interactions in theirs, and its vectors `vectors/NAME`."""
    source, out = home / f"{name}-source", home / name
    source.mkdir()
    lines = [f"{user},{item},{time}" for time, (user, item) in enumerate(uses)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    rows = [json.dumps({"item_id": item, "title": f"thing {item}"}) for item in items]
    (source / "items.jsonl").write_text("\n".join(rows))
    assert run(["data", "import", str(source), "--out", str(out), "--core", "0"]) == 0
    catalog = Catalog.open(out)
    table = np.array([VECTORS[item] for item in catalog.items["item_id"]], dtype=np.float32)
    _save(catalog, table, f"vectors/{name}", method="last")
    return catalog


def _save(catalog: Catalog, table: np.ndarray, name: str, **manifest: Any) -> None:
    registry = Registry.open(catalog.path.parent / "home" / "registry")
    ItemVectors.save(registry, table, catalog, name=name, why="test", **manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Catalogs `before`, and `after` without two of its items, with new ones and a new user; recommenders.

    They are of `before`: `ids`, `vectors`, and `both`, which has an embedding per id beside vectors.
    """
    home = tmp_path_factory.mktemp("snapshots")
    rng = np.random.default_rng(0)
    uses = [
        (f"u{user}", f"i{item:02}")
        for user in range(30)
        for item in rng.permutation(N)[: rng.integers(5, 12)]
    ]
    gone = {"i03", "i17"}
    later = [("late", item) for item in (NEW[0], "i05", "i09", NEW[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAREC_HOME", str(home / "home"))
        before = _import(home, "before", [f"i{row:02}" for row in range(N)], uses)
        rows = [item for item in before.items["item_id"].to_list()[::-1] if item not in gone]
        _import(home, "after", [*NEW, *rows], [*later, *(use for use in uses if use[1] not in gone)])
        common = ["recommend", "train", "--data", str(home / "before"), *SETS]
        assert run([*common, "--ids", "--name", "ids"]) == 0
        over = [*common, "--vectors", "vectors/before", "--set=recommender.id_dropout=0"]
        for name, table in (("vectors", "mlp"), ("both", "mlp+ids")):
            assert run([*over, f"--set=recommender.table={table}", "--name", name]) == 0
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of those, as the home."""
    monkeypatch.setenv("EAREC_HOME", str(made / "home"))
    return made


def _topk(home: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[dict[str, float], str]:
    """Scores by item, best first, and what was said beside."""
    assert run(["recommend", "topk", *argv, "--include-seen", "-k", "99", "--json"]) == 0
    said = capsys.readouterr()
    return {row["item_id"]: row["score"] for row in json.loads(said.out)}, said.err


@pytest.mark.parametrize("model", ["ids", "vectors", "both"])
def test_items_of_the_training_have_the_scores_that_they_had_in_whatever_order_the_items_are(
    home: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    history = ["--history", "i05,i11,i02"]
    before, _ = _topk(home, capsys, model, "--data", str(home / "before"), *history)
    after, said = _topk(home, capsys, model, "--data", str(home / "after"), *history)
    assert list(after) == [item for item in before if item not in ("i03", "i17")]
    assert after == pytest.approx({item: before[item] for item in after}, rel=1e-5, abs=1e-5)
    assert "22 of 28 items were in the training" in said
    assert ("--vectors REF" in said) == (model != "ids")
    assert ("by their ids alone" in said) == (model == "ids")


@pytest.mark.parametrize("model", ["vectors", "both"])
def test_with_vectors_new_items_compete_and_those_of_the_training_score_as_before(
    home: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    history = ["--history", "i05,i11,i02"]
    before, _ = _topk(home, capsys, model, "--data", str(home / "before"), *history)
    over = ["--data", str(home / "after"), "--vectors", "vectors/after"]
    after, said = _topk(home, capsys, model, *over, *history)
    assert set(after) == {item for item in before if item not in ("i03", "i17")} | set(NEW)
    old = {item: score for item, score in after.items() if item in before}
    assert old == pytest.approx({item: before[item] for item in old}, rel=1e-4, abs=1e-4)
    assert list(after.values()) == sorted(after.values(), reverse=True)
    assert ("22 of 28 items were in the training" in said) == (model == "both")


def test_a_new_item_scores_as_one_of_the_training_with_the_same_vector(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = Catalog.open(home / "after")
    ids = after.items["item_id"].to_list()
    twin = np.array([VECTORS["i11" if item == NEW[0] else item] for item in ids], dtype=np.float32)
    _save(after, twin, "vectors/twin", method="last")
    over = ["vectors", "--data", str(home / "after"), "--vectors", "vectors/twin"]
    scores, _ = _topk(home, capsys, *over, "--history", "i05")
    assert scores[NEW[0]] == pytest.approx(scores["i11"], rel=1e-6)
    read_new, _ = _topk(home, capsys, *over, "--history", f"i05,{NEW[0]}")
    read_old, _ = _topk(home, capsys, *over, "--history", "i05,i11")
    assert read_new == pytest.approx(read_old, rel=1e-5)


def test_users_after_the_training_are_read_by_what_is_known_of_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(home / "after")]
    late, _ = _topk(home, capsys, "ids", *data, "--user", "late")
    typed, _ = _topk(home, capsys, "ids", *data, "--history", "i05,i09")
    assert late == typed
    assert run(["recommend", "topk", "ids", *data, "--history", ",".join(NEW[:2])]) == 2
    assert "knows none of the 2 items" in capsys.readouterr().err
    out = home / "many"
    (home / "users.txt").write_text("late\nu3\n")
    users = ["--users", str(home / "users.txt"), "--out", str(out), "-k", "3"]
    assert run(["recommend", "topk", "vectors", *data, "--vectors", "vectors/after", *users]) == 0
    table = pl.read_parquet(out / "part-*.parquet")
    assert table["user_id"].to_list() == ["late"] * 3 + ["u3"] * 3
    capsys.readouterr()
    best, _ = _topk(home, capsys, "vectors", *data, "--vectors", "vectors/after", "--user", "late")
    seen = {NEW[0], NEW[1], "i05", "i09"}
    assert table["item_id"].to_list()[:3] == [item for item in best if item not in seen][:3]


def test_what_cannot_be_served_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = Catalog.open(home / "after")
    _save(after, np.ones((len(after), D), dtype=np.float32), "vectors/mean", method="mean")
    _import(home, "strangers", NEW, [("u", item) for item in NEW])
    capsys.readouterr()
    history = ["--history", NEW[0]]
    for argv, words in (
        (["vectors", "--data", str(home / "after"), "--vectors", "vectors/mean"], "method differ"),
        (["ids", "--data", str(home / "after"), "--vectors", "vectors/after"], "item vectors"),
        (["ids", "--data", str(home / "strangers")], "knows none of the items of 'strangers'"),
    ):
        assert run(["recommend", "topk", *argv, *history]) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert not said.out
        assert len(said.err.splitlines()) <= 2
    other = ["vectors", "--data", str(home / "strangers"), "--vectors", "vectors/strangers"]
    scores, _ = _topk(home, capsys, *other, *history)
    assert set(scores) == set(NEW)


def test_one_stored_before_ids_were_is_read_by_the_ids_of_its_vectors(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open(home / "home" / "registry")
    for name in ("ids", "vectors"):
        stored = open_as(registry, name, RecommenderManifest)
        files = {
            file.name: file for file in stored.folder.iterdir() if file.name not in (IDS, "manifest.json")
        }
        save(registry, stored.manifest, files, name=f"old-{name}", why="test")
    data = ["--data", str(home / "after"), "--history", "i05"]
    new, _ = _topk(home, capsys, "vectors", *data)
    old, _ = _topk(home, capsys, "old-vectors", *data)
    assert old == new
    assert run(["recommend", "topk", "old-ids", *data]) == 2
    assert "did not store the items' ids" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["vectors", "both"])
def test_a_reason_is_the_score_that_the_retriever_gives_without_the_part_or_the_past_item(
    home: Path, model: str
) -> None:
    """Brute force: a retriever over vectors with one row replaced, and one asked with a shorter history."""
    registry, catalog = Registry.open(home / "home" / "registry"), Catalog.open(home / "after")
    ids, source = catalog.items["item_id"].to_list(), Source.open(registry, model)
    vectors = ItemVectors.open(registry, "vectors/after", catalog)
    retriever = over_vectors(registry, model, catalog, {"v": vectors})
    history = [ids.index(item) for item in ("i05", "i11", "i02", "i11")]
    # An id's own embedding hides a replaced vector from `over_vectors`: with `both` a new item has none.
    rows = [ids.index(NEW[2]), *([ids.index("i09")] if model == "vectors" else [])]
    others = {"first": np.ones(D, dtype=np.float32), "second": vectors.vectors[ids.index("i01")] * 0.5}

    def score(past: list[int], row: int, replaced: np.ndarray | None = None) -> float:
        table = vectors.vectors.copy()
        if replaced is not None:
            table[row] = replaced
        asked = over_vectors(registry, model, catalog, {"v": replace(vectors, vectors=table)})
        (ranking,) = asked.recommend([torch.tensor(past)], len(ids), exclude_seen=False)
        return float(ranking.scores[ranking.rows.tolist().index(row)])

    def in_space(*some: np.ndarray) -> torch.Tensor:
        return by_vectors(source, [replace(vectors, vectors=np.stack(some))])

    altered = {
        row: without_vectors(
            retriever,
            row,
            in_space(vectors.vectors[row])[0],
            dict(zip(others, in_space(*others.values()), strict=True)),
        )
        for row in rows
    }
    found = reasons(retriever, torch.tensor(history), altered)
    assert [one.row for one in found] == rows
    for one in found:
        assert one.score == pytest.approx(score(history, one.row), rel=1e-4)
        expected = {name: score(history, one.row, vector) for name, vector in others.items()}
        assert one.without_part == pytest.approx(expected, rel=1e-4)
        shorter = {row: score([past for past in history if past != row], one.row) for row in set(history)}
        assert one.without_item == pytest.approx(shorter, rel=1e-4)
    (alone,) = reasons(retriever, torch.tensor([3, 3]), {rows[0]: {}})
    assert (alone.without_part, alone.without_item) == ({}, {3: None})


def test_without_a_part_an_item_keeps_the_embedding_of_its_id(home: Path) -> None:
    registry, catalog = Registry.open(home / "home" / "registry"), Catalog.open(home / "after")
    vectors = ItemVectors.open(registry, "vectors/after", catalog)
    retriever = over_vectors(registry, "both", catalog, {"v": vectors})
    row = catalog.items["item_id"].to_list().index("i09")
    own = by_vectors(Source.open(registry, "both"), [vectors])
    assert not torch.allclose(own[row], retriever.items[row], atol=1e-3)
    same = without_vectors(retriever, row, own[row], {"nothing": own[row], "all": own[0]})
    assert torch.allclose(same["nothing"], retriever.items[row], atol=1e-5)
    assert torch.allclose(same["all"] - same["nothing"], own[0] - own[row], atol=1e-5)
