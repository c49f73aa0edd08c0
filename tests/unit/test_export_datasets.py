"""Datasets as RecBole and RecTools read them, read back by pandas, with which both read, and the csv module."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import yaml

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import cli, run
from earec_core.errors import UsageError
from earec_core.export import DATASETS, export_dataset
from earec_core.workspace import Workspace

HISTORIES = {
    "u 1": ["007", "b", "c", "b", "é", "007"],
    "u2": ["c"],
    "u3": ["é", "b"],
    "u4": ["b", "c", "007"],
}
TITLES = {"007": 'The "Red" pen', "b": '"Blue"', "c": "Cap, desk", "é": ""}
VECTORS = (np.random.default_rng(0).normal(size=(4, 3)) * [1e-9, 1.0, 1e9]).astype(np.float32)


def _catalog(folder: Path, histories: dict[str, list[str]], times: Callable[[int], float] = float) -> Catalog:
    """A catalog of these sequences, the time of an interaction given by its place in the file."""
    source = folder / "source"
    source.mkdir()
    rows = [(user, item) for user, items in histories.items() for item in items]
    ids = dict.fromkeys(sorted(item for _, item in rows))
    (source / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": id_, "title": TITLES.get(id_, "A")}) + "\n" for id_ in ids)
    )
    (source / "interactions.jsonl").write_text(
        "".join(
            json.dumps({"user_id": user, "item_id": item, "timestamp": times(place)}) + "\n"
            for place, (user, item) in enumerate(rows)
        )
    )
    return import_dataset(source, folder / "data", core=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return _catalog(tmp_path, HISTORIES)


def _stored(tmp_path: Path, catalog: Catalog) -> ItemVectors:
    registry = Workspace.open(registry=tmp_path / "registry").registry
    return ItemVectors.save(registry, VECTORS, catalog, name="vectors/mine", why="a test", method="given")


def _recbole(file: Path) -> pd.DataFrame:
    """As RecBole 1.2.1 reads an atomic file: columns by their headers' types, sequences split at spaces."""
    names = [column.split(":") for column in file.read_text().partition("\n")[0].split("\t")]
    types = {":".join(name): float if name[1] == "float" else str for name in names}
    table = pd.read_csv(file, delimiter="\t", dtype=types, engine="python")
    for (_, kind), column in zip(names, table.columns, strict=True):
        if kind.endswith("_seq"):
            table[column] = [text.split(" ") for text in table[column].fillna("")]
    return table.set_axis([name for name, _ in names], axis=1)


def test_recbole_reads_every_interaction_in_order(tmp_path: Path, catalog: Catalog) -> None:
    export_dataset(catalog, "recbole", tmp_path / "out/shop")
    read = _recbole(tmp_path / "out/shop/shop.inter")
    assert {user: rows["item_id"].tolist() for user, rows in read.groupby("user_id", sort=False)} == HISTORIES
    assert [times.tolist() for _, times in read.groupby("user_id", sort=False)["timestamp"]] == [
        list(range(len(items))) for items in HISTORIES.values()
    ]


@pytest.mark.parametrize("max_len", [None, 2])
def test_recbole_reads_the_leave_one_out_split(tmp_path: Path, catalog: Catalog, max_len: int | None) -> None:
    export_dataset(catalog, "recbole", tmp_path / "shop", max_len=max_len)
    expected: dict[str, list[Any]] = {"train": [], "valid": [], "test": []}
    for user, items in HISTORIES.items():
        for end in range(1, len(items)):
            last = len(items) - 1 - end
            part = "train" if len(items) < 3 or last > 1 else ("test", "valid")[last]
            expected[part].append((user, items[max(0, end - (max_len or 50)) : end], items[end]))
    for part, rows in expected.items():
        read = _recbole(tmp_path / f"shop/shop.{part}.inter")
        assert list(read.itertuples(index=False, name=None)) == rows


def test_recbole_reads_items_and_vectors_as_they_are(tmp_path: Path, catalog: Catalog) -> None:
    export_dataset(catalog, "recbole", tmp_path / "shop", vectors=_stored(tmp_path, catalog))
    items = _recbole(tmp_path / "shop/shop.item")
    assert dict(zip(items["item_id"], map(" ".join, items["title"]), strict=True)) == TITLES
    read = _recbole(tmp_path / "shop/shop.itememb")
    assert read["vector_id"].tolist() == list(TITLES)
    numbers = np.array([[float(number) for number in row] for row in read["vector"]])
    np.testing.assert_array_equal(numbers.astype(np.float32), VECTORS)


@pytest.mark.parametrize("vectors", [False, True])
def test_recboles_settings_name_what_is_there(tmp_path: Path, catalog: Catalog, vectors: bool) -> None:
    stored = _stored(tmp_path, catalog) if vectors else None
    export_dataset(catalog, "recbole", tmp_path / "shop", vectors=stored, max_len=7)
    settings = yaml.safe_load((tmp_path / "shop/settings.yaml").read_text())
    files = {
        "inter": [f"{part}.inter" for part in settings["benchmark_filename"]],
        "item": ["item"],
        **{suffix: [suffix] for suffix in settings.get("additional_feat_suffix", ())},
    }
    assert settings["load_col"].keys() == files.keys()
    assert ("itememb" in files) is vectors
    for kind, columns in settings["load_col"].items():
        for file in files[kind]:
            assert set(columns) <= set(_recbole(tmp_path / f"shop/shop.{file}").columns)
    loaded = {column for columns in settings["load_col"].values() for column in columns}
    assert {*settings["alias_of_item_id"], *settings.get("preload_weight", {})} <= loaded
    assert settings["MAX_ITEM_LIST_LENGTH"] == 7


@pytest.mark.parametrize(
    ("user", "item", "named"),
    [
        ("u", "a b", "a b"),
        ("u", 'a"b', 'a"b'),
        ("u", "NA", "NA"),
        ("u", "[PAD]", "[PAD]"),
        ("None", "a", "None"),
        ("a\tb", "a", "a\\tb"),
    ],
)
def test_an_id_that_recbole_would_change_is_refused(tmp_path: Path, user: str, item: str, named: str) -> None:
    catalog = _catalog(tmp_path, {user: [item, "z"]})
    with pytest.raises(UsageError) as caught:
        export_dataset(catalog, "recbole", tmp_path / "shop")
    assert named in str(caught.value)
    assert not (tmp_path / "shop").exists()
    export_dataset(catalog, "rectools", tmp_path / "shop")
    assert pd.read_parquet(tmp_path / "shop/train.parquet")["item_id"].tolist() == [item, "z"]


def test_what_recbole_does_not_read_is_refused(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="its own data"):
        export_dataset(catalog, "recbole", tmp_path / "ml-100k")
    registry = Workspace.open(registry=tmp_path / "registry").registry
    wide = np.full((4, 20_000), -1.2345678e-7, dtype=np.float32)
    vectors = ItemVectors.save(registry, wide, catalog, name="wide", why="a test", method="given")
    with pytest.raises(UsageError, match="20,000 numbers"):
        export_dataset(catalog, "recbole", tmp_path / "shop", vectors=vectors)


def test_rectools_gets_the_split_and_the_vectors(tmp_path: Path, catalog: Catalog) -> None:
    export_dataset(catalog, "rectools", tmp_path / "tables", vectors=_stored(tmp_path, catalog))
    parts = [pd.read_parquet(tmp_path / f"tables/{part}.parquet") for part in ("train", "valid", "test")]
    for part in parts:
        assert part.columns.tolist() == ["user_id", "item_id", "weight", "datetime"]
        assert (part["weight"] == 1).all()
    assert parts[1][["user_id", "item_id"]].to_numpy().tolist() == [["u 1", "é"], ["u4", "c"]]
    assert parts[2][["user_id", "item_id"]].to_numpy().tolist() == [["u 1", "007"], ["u4", "007"]]
    together = pd.concat(parts).sample(frac=1, random_state=0).sort_values("datetime")
    assert {user: rows["item_id"].tolist() for user, rows in together.groupby("user_id")} == HISTORIES
    features = pd.read_parquet(tmp_path / "tables/item_features.parquet")
    assert features["id"].tolist() == list(TITLES)
    np.testing.assert_array_equal(features.drop(columns="id").to_numpy(), VECTORS)
    assert set(features.dtypes.drop("id")) == {np.dtype("float32")}


@pytest.mark.parametrize("scale", [1, 1e3, 1e6])
def test_times_are_dates_and_strictly_in_order(tmp_path: Path, scale: float) -> None:
    """Three at one second, then one a second later, in the source's unit; the order survives an unstable sort."""
    seconds = [1_700_000_000, 1_700_000_000, 1_700_000_000, 1_700_000_001]
    items = ["c", "b", "é", "007"]
    catalog = _catalog(tmp_path, {"u": items}, lambda place: seconds[place] * scale)
    export_dataset(catalog, "rectools", tmp_path / "tables")
    parts = [pd.read_parquet(tmp_path / f"tables/{part}.parquet") for part in ("train", "valid", "test")]
    read = pd.concat(parts)
    assert read["item_id"].tolist() == items
    microseconds = read["datetime"].astype("datetime64[us]").astype("int64").to_numpy()
    assert (microseconds - 1_700_000_000_000_000).tolist() == [0, 1, 2, 1_000_000]
    read["datetime"].astype("datetime64[ns]")


def test_rectools_cuts_histories_itself(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="session_max_len"):
        export_dataset(catalog, "rectools", tmp_path / "tables", max_len=5)


@pytest.mark.parametrize("format_", DATASETS)
def test_items_alone_are_refused(tmp_path: Path, format_: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/items.csv").write_text("item_id,title\na,pen\nb,desk\n")
    catalog = import_dataset(tmp_path / "shop", tmp_path / "data")
    with pytest.raises(UsageError, match="no interactions"):
        export_dataset(catalog, format_, tmp_path / "out")


def test_the_command(tmp_path: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.get_command(click.Context(cli), "data")
    assert isinstance(command, click.Group)
    export = command.commands["export"]
    choice = next(parameter.type for parameter in export.params if parameter.name == "format")
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == list(DATASETS)
    stored = _stored(tmp_path, catalog)
    target, registry = tmp_path / "shop", str(tmp_path / "registry")
    argv = ["data", "export", str(catalog.path), "--registry", registry, "--vectors", stored.id]
    assert run([*argv, "--format", "recbole", "--out", str(target), "--max-len", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"format": "recbole", "out": str(target), "vectors": stored.id}
    assert max(map(len, _recbole(target / "shop.train.inter")["item_id_list"])) == 2
    assert run([*argv, "--format", "rectools", "--out", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*argv, "--format", "rectools", "--out", str(tmp_path / "tables")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tables'}\n"
