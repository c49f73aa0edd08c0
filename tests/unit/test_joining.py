"""Several catalogs as one: nothing of an item changes but its id."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from earec_core.align.samples import batches, order_of
from earec_core.catalog import Catalog, import_dataset, join_catalogs
from earec_core.catalog.joining import join_once
from earec_core.cli import run
from earec_core.errors import DataError


def _catalog(folder: Path, name: str, n: int, **columns: Any) -> Catalog:
    source = folder / f"source-{name}"
    source.mkdir(parents=True)
    rng = np.random.default_rng(n)
    rows = [{"item_id": f"{i}", "title": f"{name} {i}", "image": f"{i}.png", **columns} for i in range(n)]
    for i in range(n):
        (source / f"{i}.png").write_bytes(f"{name} {i}".encode())
    (source / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    lines = [f"u{u},{i},{t}" for u in range(8) for t, i in enumerate(rng.permutation(n)[:6])]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    return import_dataset(source, folder / "data" / name, core=1)


@pytest.fixture
def three(tmp_path: Path) -> list[Catalog]:
    return [
        _catalog(tmp_path, "small", 12),
        _catalog(tmp_path, "large", 40, brand="B", tags=3),
        _catalog(tmp_path, "x", 9),
    ]


def test_items_users_relations_splits_and_files_are_each_catalogs_own(
    three: list[Catalog], tmp_path: Path
) -> None:
    joined = join_catalogs(three, tmp_path / "elsewhere" / "all")
    assert joined.name == "small-large-x"
    items = joined.all_items()
    assert len(items) == sum(map(len, three))
    place = 0
    for catalog in three:
        for item in catalog.all_items():
            mine = items[place + item.index]
            assert mine.id == f"{catalog.name}/{item.id}"
            assert (mine.title, mine.fields.get("brand")) == (item.title, item.fields.get("brand"))
            assert [items[r].id for r in mine.relations] == [
                f"{catalog.name}/{catalog.item(r).id}" for r in item.relations
            ]
            assert mine.content("image") == item.content("image")
        for split in ("train", "valid", "test"):
            rows = joined.item_split(split)
            own = rows[(rows >= place) & (rows < place + len(catalog))] - place
            assert np.array_equal(own, catalog.item_split(split))
        place += len(catalog)
    mine, theirs = joined.sequences(), [catalog.sequences() for catalog in three]
    assert len(mine) == sum(map(len, theirs))
    assert mine.users.tolist() == [
        f"{c.name}/{u}" for c, s in zip(three, theirs, strict=True) for u in s.users
    ]
    user = len(theirs[0]) + 3
    assert [items[row].id for row in mine.of(user)] == [
        f"large/{three[1].item(int(r)).id}" for r in theirs[1].of(3)
    ]


def test_what_does_not_join_is_said_and_the_same_is_joined_once(three: list[Catalog], tmp_path: Path) -> None:
    joined = join_once(three[:2], tmp_path / "cache")
    stamp = (joined.path / "manifest.json").stat().st_mtime_ns
    assert join_once(three[:2], tmp_path / "cache").digest == joined.digest
    assert (joined.path / "manifest.json").stat().st_mtime_ns == stamp
    assert join_once(three[1:], tmp_path / "cache").path != joined.path
    for catalogs, said in (
        ([three[0]], "different names"),
        ([three[0], three[0]], "different names"),
        ([three[2], joined], "joined itself"),
    ):
        with pytest.raises(DataError, match=said):
            join_catalogs(catalogs, tmp_path / "bad")
    with pytest.raises(DataError, match="already there"):
        join_catalogs(three, joined.path)
    other = _catalog(tmp_path / "more", "odd", 9, tags=["a", "b"])
    with pytest.raises(DataError, match="do not go together"):
        join_catalogs([three[1], other], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1000.0])
def test_an_epoch_holds_each_catalogs_share(temperature: float) -> None:
    groups = ["a"] * 300 + ["b"] * 75 + ["c"] * 25
    shares = np.array([300, 75, 25]) ** (1 / temperature)
    expected = dict(zip("abc", shares / shares.sum() * 400, strict=True))
    seen: Counter[int] = Counter()
    for epoch in range(40):
        order = order_of(groups, temperature, np.random.default_rng(epoch))
        counts = Counter(groups[i] for i in order)
        assert len(order) == 400
        assert all(abs(counts[name] - expected[name]) < 3 for name in "abc")
        seen.update(order.tolist())
        within = Counter(order.tolist())
        for name in "abc":  # none comes twice more often than another of its catalog
            mine = [within[i] for i, group in enumerate(groups) if group == name]
            assert max(mine) - min(mine) <= 1
    assert len(seen) == 400


def test_one_catalog_is_batched_as_ever() -> None:
    samples: Any = [SimpleNamespace(length=n % 7) for n in range(50)]
    alone = [[id(s) for s in batch] for batch in batches(samples, 8, 3, 2)]
    grouped = [[id(s) for s in b] for b in batches(samples, 8, 3, 2, groups=["a"] * 50, temperature=4.0)]
    assert alone == grouped


def test_the_command_joins(three: list[Catalog], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    paths = [str(catalog.path) for catalog in three]
    assert run(["data", "join", *paths, "--out", str(tmp_path / "out"), "--name", "shop", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["counts"]["items"]) == ("shop", sum(map(len, three)))
    assert run(["data", "join", paths[0], "--out", str(tmp_path / "other")]) == 2
