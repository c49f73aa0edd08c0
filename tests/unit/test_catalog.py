"""The catalog: k-core, splits and relations against plain loops; the dataset directory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earec_core.catalog import Catalog, Sequences, import_dataset, importing
from earec_core.catalog.formats.columns import Table
from earec_core.catalog.interactions import filtered
from earec_core.catalog.relations import cooccurrence
from earec_core.catalog.splits import item_split, leave_one_out, random_part
from earec_core.cli import run
from earec_core.errors import DamagedInputError, DataError
from earec_core.files import write_atomic
from earec_core.types import Item

Row = tuple[str, str, int]
USES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60)


def write_source(folder: Path, rows: Sequence[Row], items: Sequence[dict[str, Any]] | None = None) -> Path:
    """A generic source; by default every item that occurs has a title."""
    folder.mkdir(parents=True, exist_ok=True)
    if items is None:
        items = [{"item_id": i, "title": f"title {i}"} for i in sorted({row[1] for row in rows})]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = [f"{user},{item},{time}\n" for user, item, time in rows]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    return folder


def walk(users: int = 12, items: int = 9, seed: int = 0) -> list[Row]:
    """Users who each meet some items, in an order of their own."""
    rng = np.random.default_rng(seed)
    return [
        (f"u{u}", f"i{i}", t) for u in range(users) for t, i in enumerate(rng.permutation(items)[: 4 + u % 5])
    ]


def histories(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What a plain loop makes of rows: each user's items by time, equal times in the order given."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[0]].append(row)
    return {user: [r[1] for r in sorted(mine, key=lambda r: r[2])] for user, mine in found.items()}


def read_back(sequences: Sequences, ids: Sequence[str]) -> dict[str, list[str]]:
    return {user: [ids[i] for i in sequences.of(n)] for n, user in enumerate(sequences.users)}


def test_an_import_says_what_each_rule_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = ["user_id,item_id,timestamp,rating", "1,1,2,5", "1,2,3,5", "2,1,3,5", "2,2,4,5"]
    lines += ["1,2,9,5", "2,2,9,5", "1,1,2,5", "1,9,9,1", ",1,3,5", "3,1,1,5"]
    (source / "interactions.csv").write_text("\n".join(lines))
    items = [json.dumps({"item_id": item, "title": item}) for item in ("1", "2", "9")]
    (source / "items.jsonl").write_text("\n".join(items))
    argv = ["--out", str(tmp_path / "data"), "--core", "2", "--min-rating", "2", "--max-len", "3"]
    argv += ["--relations", "none"]
    assert run(["data", "import", str(source), *argv]) == 0
    removed = "1 without an id, 1 not rated 2 or higher, 1 repeated, 1 by the 2-core"
    said = f"Interactions removed: {removed}. Items without one left: 1."
    assert said in capsys.readouterr().err
    catalog = Catalog.open(tmp_path / "data")
    assert sum(catalog.manifest["removed"].values()) + len(catalog.interactions) == len(lines) - 1
    assert catalog.manifest["unused_items"] == 1


@given(uses=USES, core=st.integers(1, 4))
def test_k_core_equals_removing_one_row_at_a_time(uses: list[tuple[int, int]], core: int) -> None:
    left = list(enumerate(uses))
    while True:
        users, items = Counter(u for _, (u, _) in left), Counter(i for _, (_, i) in left)
        weak = next((row for row in left if users[row[1][0]] < core or items[row[1][1]] < core), None)
        if weak is None:
            break
        left.remove(weak)
    table = pl.DataFrame(
        [(n, str(u), str(i)) for n, (u, i) in enumerate(uses)],
        schema={"timestamp": pl.Int64, "user_id": pl.String, "item_id": pl.String},
        orient="row",
    )
    found = filtered(Table(table), core=core, min_rating=None, max_len=None)
    users = list(dict.fromkeys(u for _, (u, _) in left))
    expected = sorted(left, key=lambda row: users.index(row[1][0]))
    assert found.times.tolist() == [n for n, _ in expected]


@given(
    uses=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=30),
    max_len=st.none() | st.integers(1, 4),
    unit=st.sampled_from([1, 0.25, -1, 1e10]),
)
def test_repeats_count_once_and_the_rest_is_in_time_order(
    uses: list[tuple[int, int, float]], max_len: int | None, unit: float
) -> None:
    uses = [(user, item, time * unit) for user, item, time in uses]
    once = list(dict.fromkeys(uses))
    users = list(dict.fromkeys(u for u, _, _ in once))
    expected = []
    for user in users:
        own = sorted((use for use in once if use[0] == user), key=lambda use: use[2])
        expected += own if max_len is None else own[-max_len:]
    table = pl.DataFrame(
        [(str(u), str(i), t) for u, i, t in uses],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Float64},
        orient="row",
    )
    found = filtered(Table(table), core=1, min_rating=None, max_len=max_len)
    rows = pl.DataFrame({"item_id": [str(item) for item in range(3)]}).with_row_index("item")
    assert found.by_row(rows).drop("user").rows() == [(str(u), i, t) for u, i, t in expected]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_leave_one_out_equals_a_plain_loop(lengths: list[int]) -> None:
    items = np.arange(sum(lengths)) * 7
    offsets = np.cumsum([0, *lengths])
    split = leave_one_out(Sequences(np.array([f"u{n}" for n in range(len(lengths))]), offsets, items))
    evaluated = []
    for user in range(len(lengths)):
        mine = items[offsets[user] : offsets[user + 1]].tolist()
        if len(mine) >= 3:
            evaluated.append(user)
            assert (split.valid[user], split.test[user]) == (mine[-2], mine[-1])
            mine = mine[:-2]
        else:
            assert (split.valid[user], split.test[user]) == (-1, -1)
        assert split.train.of(user).tolist() == mine
    assert split.eval_users.tolist() == evaluated
    assert len(split.train) == len(lengths)


def test_titles_are_looked_up_by_id_with_and_without_the_items_in_memory(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", n) for n in range(4)]
    items = [{"item_id": f"i{n}", **({"title": f"T{n}"} if n else {})} for n in range(4)]
    catalog = import_dataset(write_source(tmp_path / "s", rows, items), tmp_path / "d", core=1)
    for opened in (catalog, Catalog.open(tmp_path / "d")):
        assert opened.titles(["i3", "i0", "none", "i1"]) == {"i3": "T3", "i1": "T1"}


@pytest.mark.parametrize("domain", ["", " ", "two\nlines", "{item}"])
def test_a_domain_is_a_few_words(tmp_path: Path, domain: str) -> None:
    source = write_source(tmp_path / "s", walk())
    with pytest.raises(DataError, match="few words"):
        import_dataset(source, tmp_path / "d", core=1, domain=domain)
    assert not (tmp_path / "d").exists()


def test_sequences_are_each_users_items_in_time_order(tmp_path: Path) -> None:
    rows = walk()
    np.random.default_rng(1).shuffle(rows)
    rows = [(str(u), str(i), int(t)) for u, i, t in rows]
    catalog = import_dataset(write_source(tmp_path / "s", rows), tmp_path / "d", core=1)
    ids = catalog.items["item_id"].to_list()
    assert read_back(catalog.sequences(), ids) == histories(rows)


@settings(max_examples=20)
@given(times=st.lists(st.integers(0, 2), min_size=5, max_size=30))
def test_equal_timestamps_keep_the_order_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    rows = [(f"u{n % 2}", f"i{n}", time) for n, time in enumerate(times)]
    folder = tmp_path_factory.mktemp("ties")
    catalog = import_dataset(write_source(folder / "s", rows), folder / "d", core=1)
    assert read_back(catalog.sequences(), catalog.items["item_id"].to_list()) == histories(rows)


def test_exact_repetitions_count_once_and_returns_count(tmp_path: Path) -> None:
    rows = [("u", "a", 1), ("u", "a", 1), ("u", "b", 2), ("u", "a", 3)]
    catalog = import_dataset(write_source(tmp_path / "s", rows), tmp_path / "d", core=1)
    assert read_back(catalog.sequences(), catalog.items["item_id"].to_list()) == {"u": ["a", "b", "a"]}


@pytest.mark.parametrize("longest", [3, 6, 1000])
def test_max_len_keeps_the_most_recent_and_all_of_who_has_fewer(longest: int, tmp_path: Path) -> None:
    rows = [*walk(), ("short", "i1", 1), ("short", "i2", 2)]
    catalog = import_dataset(write_source(tmp_path / "s", rows), tmp_path / "d", core=1, max_len=longest)
    got = read_back(catalog.sequences(), catalog.items["item_id"].to_list())
    assert got == {user: mine[-longest:] for user, mine in histories(rows).items()}


def test_items_and_interactions_find_each_other(tmp_path: Path) -> None:
    items = [
        {"item_id": "unused", "title": "U"},
        {"item_id": "b", "title": "B"},
        {"item_id": "a", "title": None},
    ]
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "unknown", 3)]
    catalog = import_dataset(write_source(tmp_path / "s", rows, items), tmp_path / "d", core=1)
    assert [(i.id, i.title) for i in catalog.all_items()] == [("b", "B"), ("a", None), ("unknown", None)]
    assert catalog.manifest["counts"]["without_title"] == 2
    assert catalog.all_items() == [catalog.item(n) for n in range(len(catalog))]


def test_items_alone_are_a_catalog(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "items.csv").write_text("id,name\n007,Bond\n7,Seven\n")
    catalog = import_dataset(source, tmp_path / "d")
    assert [(i.id, i.title) for i in catalog.all_items()] == [("007", "Bond"), ("7", "Seven")]
    assert len(catalog.sequences()) == 0
    assert catalog.leave_one_out().eval_users.size == 0


def plain_cooccurrence(
    train: Sequence[Sequence[int]], window: int = 3, top: int = 10
) -> dict[int, list[int]]:
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for mine in train:
        pairs = {
            (a, b)
            for n, a in enumerate(mine)
            for m, b in enumerate(mine)
            if a != b and 0 < abs(n - m) <= window
        }
        for a, b in pairs:
            counts[a][b] += 1
    return {a: sorted(c, key=lambda b: (-c[b], b))[:top] for a, c in counts.items()}


def test_cooccurrence_equals_a_plain_loop(tmp_path: Path) -> None:
    rows = [*walk(60, 20), ("short", "i1", 0), ("short", "i2", 1)]
    catalog = import_dataset(write_source(tmp_path / "s", rows), tmp_path / "d", core=1)
    train = catalog.leave_one_out().train
    expected = plain_cooccurrence([train.of(u).tolist() for u in range(len(train))])
    assert {i.index: list(i.relations) for i in catalog.all_items() if i.relations} == expected
    assert catalog.manifest["options"]["relations"] == "cooccurrence"


@given(seed=st.integers(0, 1000), targets=st.lists(st.integers(0, 8), min_size=24, max_size=24))
def test_targets_change_no_relation(seed: int, targets: list[int]) -> None:
    rows = [(int(u[1:]), int(i[1:])) for u, i, _ in walk(seed=seed)]
    other, place = [], Counter(u for u, _ in rows)
    for user, item in rows:
        place[user] -= 1
        other.append((user, targets[2 * user + place[user]] if place[user] < 2 else item))
    tables = [pl.DataFrame(r, schema=["user", "item"], orient="row") for r in (rows, other)]
    assert cooccurrence(tables[0]).equals(cooccurrence(tables[1]))


def test_given_relations_keep_their_order_strongest_kind_first(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", [("u", i, n) for n, i in enumerate("abcd")])
    lines = ["a,c,also_view", "a,d,also_buy", "a,b,also_buy", "a,a,also_buy", "a,c,also_buy", "a,zz,also_buy"]
    (source / "relations.csv").write_text("\n".join(["item_id,related_item_id,kind", *lines]) + "\n")
    catalog = import_dataset(source, tmp_path / "d", core=1)
    ids = catalog.items["item_id"].to_list()
    assert [ids[r] for r in catalog.item(0).relations] == ["d", "b", "c"]
    assert catalog.item(1).relations == ()
    assert catalog.manifest["options"]["relations"] == "given"
    none = import_dataset(source, tmp_path / "none", core=1, relations="none")
    assert none.relations.height == 0


def test_item_split_is_a_partition_that_other_items_do_not_change() -> None:
    ids = [f"item-{n}" for n in range(5000)]
    parts = {s: set(item_split(ids, s).tolist()) for s in ("train", "valid", "test")}  # type: ignore[arg-type]
    assert (
        sorted(n for part in parts.values() for n in part)
        == list(range(5000))
        == item_split(ids, "all").tolist()
    )
    assert len(parts["train"]) == pytest.approx(4000, abs=120)
    assert len(parts["valid"]) == pytest.approx(500, abs=90)
    assert set((item_split(ids[1000:], "test") + 1000).tolist()) == {n for n in parts["test"] if n >= 1000}


@pytest.mark.parametrize("column", ["image", "video"])
def test_any_columns_files_are_found_and_addresses_stay(
    tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [
        "clips/../clips/a.bin",
        "https://example.org/b.bin",
        "file:///c%20d.bin",
        None,
        ["d.bin", "e.bin"],
    ]
    rows = [{"item_id": str(n), "title": "T", column: value} for n, value in enumerate(values)]
    # One kind of value a column: texts and lists come from sources of their own.
    for name, part in (("texts", rows[:4]), ("lists", rows[3:])):
        source = write_source(tmp_path / "here" / name, [("u", row["item_id"], 0) for row in part], part)
        (source / "clips").mkdir()
        (source / "clips" / "a.bin").write_bytes(b"a")
        import_dataset(source, tmp_path / "here" / "deep" / "er" / name, core=1, allow_outside=True)
    # Source and dataset move together.
    moved = tmp_path / "there"
    (tmp_path / "here").rename(moved)
    monkeypatch.chdir(moved)
    texts, lists = (Catalog.open(Path("deep") / "er" / name) for name in ("texts", "lists"))
    assert [item.fields.get(column) for item in texts.all_items()] == values[:4]
    assert [item.path(column) for item in texts.all_items()] == [
        str(moved / "texts/clips/a.bin"),
        "https://example.org/b.bin",
        "/c d.bin",
        None,
    ]
    path = texts.item(0).path(column)
    assert path is not None
    assert Path(path).read_bytes() == b"a"
    assert lists.item(1).fields[column] == values[4]
    assert [item.path(column) for item in lists.all_items()] == [None, str(moved / "lists/d.bin")]
    assert texts.manifest["counts"]["columns"][column] == 3


@pytest.mark.parametrize("value", [None, "", [], [None], [1.0], 3, b"content", {"a": "b"}])
def test_what_names_no_file_has_no_path(value: Any, tmp_path: Path) -> None:
    assert Item(0, "i", None, {"f": value}, folder=tmp_path).path("f") is None
    assert Item(0, "i", None, {}, folder=tmp_path).path("f") is None


@pytest.mark.parametrize("value", ["a/b", "/a/b", "file:///a/b", "../a"])
def test_without_a_folder_a_path_is_as_it_stands(value: str) -> None:
    assert Item(0, "i", None, {"f": value}).path("f") == value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A catalog's folder, seen through a link, with files and links; beside it what is nobody's business."""
    (tmp_path / "disk" / "shop" / "images").mkdir(parents=True)
    (tmp_path / "shop").symlink_to(tmp_path / "disk" / "shop")
    for file in ("shop/images/a b.png", "shop-private.png", "disk/secret.png"):
        (tmp_path / file).write_bytes(b"p")
    (tmp_path / "shop" / "link.png").symlink_to("images/a b.png")
    (tmp_path / "shop" / "out.png").symlink_to(tmp_path / "disk" / "secret.png")
    (tmp_path / "shop" / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "shop" / "loop").symlink_to("loop")
    return tmp_path / "shop"


@pytest.mark.parametrize(
    ("value", "opens"),
    [
        ("images/a b.png", "images/a b.png"),
        ("images/../images/./a b.png", "images/a b.png"),
        ("../shop/images/a b.png", "images/a b.png"),
        ("{shop}/images/a b.png", "images/a b.png"),
        ("file://{shop}/images/a%20b.png", "images/a b.png"),
        ("FILE://localhost{shop}/images/a%20b.png?x", "images/a b.png"),
        ("link.png", "link.png"),
        ("not/there.png", "not/there.png"),
        ("https://example.org/../../x.png", None),
    ],
)
def test_files_in_the_catalogs_folder_are_opened(folder: Path, value: str, opens: str | None) -> None:
    value = value.format(shop=folder)
    found = Item(0, "i", None, {"f": value}, folder=folder).path("f")
    assert found == (str(folder / opens) if opens else value)


@pytest.mark.parametrize(
    "value",
    [
        "../disk/secret.png",
        "../shop-private.png",
        "..",
        "/etc/hostname",
        "{shop}/../shop-private.png",
        "file:///etc/hostname",
        "File:///etc/hostname",
        "file://localhost/etc/%68ostname",
        "out.png",
        "out/secret.png",
        "images/../../shop-private.png",
        "images/a://../../../../disk/secret.png",
        "images/\0.png",
        "\ud800/../../x",
    ],
)
def test_files_outside_are_not_but_where_it_is_allowed(folder: Path, value: str) -> None:
    value = value.format(shop=folder)
    item = Item(0, "i7", None, {"f": [value]}, folder=folder)
    with pytest.raises(DamagedInputError, match=r"The f of item i7 is a file outside .* --allow-outside\."):
        item.path("f")
    found = replace(item, outside=True).path("f")
    assert found is not None
    assert Path(found).is_absolute()


def test_what_a_catalog_may_name_is_said_at_its_import_and_kept(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"item_id": str(n), "title": "T", "image": name} for n, name in enumerate(("out.png", "link.png"))
    ]
    write_source(folder, [("u", "0", 0), ("u", "1", 1)], rows)
    command = ["data", "import", str(folder), "--core", "1", "--out"]
    assert run([*command, str(tmp_path / "closed")]) == 0
    assert run([*command, str(tmp_path / "open"), "--allow-outside"]) == 0
    closed, opened = (Catalog.open(tmp_path / name) for name in ("closed", "open"))
    assert [catalog.manifest["options"]["allow_outside"] for catalog in (closed, opened)] == [False, True]
    assert closed.digest == opened.digest
    for catalog in (closed, opened):
        path = catalog.item(1).path("image")
        assert path is not None
        assert Path(path).read_bytes() == b"p"
    with pytest.raises(DamagedInputError):
        closed.item(0).path("image")
    assert opened.item(0).path("image") is not None
    # What was imported before there was this setting may not either.
    manifest = json.loads((tmp_path / "open" / "manifest.json").read_text())
    del manifest["options"]["allow_outside"]
    (tmp_path / "open" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedInputError):
        Catalog.open(tmp_path / "open").item(0).path("image")


def test_no_picture_of_the_machine_gets_into_a_report(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from earec_core.modality import Context, create

    for file in (folder / "images" / "a b.png", tmp_path / "disk" / "secret.png"):
        Image.new("RGB", (8, 8), "red").save(file)
    vision = create("vision", {}, Context("shop", tmp_path, tmp_path))
    inside, outside = (
        Item(0, "i", None, {"image": name}, folder=folder)
        for name in ("images/a b.png", "../disk/secret.png")
    )
    assert vision.describe(inside).startswith("data:image/")
    assert vision.describe(outside).startswith("The image of item i is a file outside")
    with pytest.raises(DamagedInputError):
        vision.read(outside)
    assert vision.describe(replace(outside, outside=True)).startswith("data:image/")


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (b"x", b"x"),
        ([b"x", b"y"], b"x"),
        ({"bytes": b"x", "path": "a"}, b"x"),
        ({"bytes": None, "path": "a"}, "/folder/a"),
        ({"path": "a"}, "/folder/a"),
        ({"bytes": None, "path": None}, None),
        ("a", "/folder/a"),
        (["https://x/a"], "https://x/a"),
        ("", None),
        (b"", None),
        ([], None),
        (None, None),
        (7, 7),
        ({"a": "b"}, {"a": "b"}),
    ],
)
def test_a_files_content_is_its_bytes_or_else_its_path(value: Any, content: Any) -> None:
    assert Item(0, "i", None, {"f": value}, folder=Path("/folder")).content("f") == content


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    items = [{"item_id": f"i{n}", "title": f"t{n}", "image": f"{n}.jpg"} for n in range(9)]
    source = write_source(tmp_path / "s", walk(), items)
    first = import_dataset(source, tmp_path / "a", core=1)
    assert import_dataset(source, tmp_path / "b" / "c", core=1).digest == first.digest
    assert Catalog.open(tmp_path / "a").digest == first.digest
    digests = [first.digest, import_dataset(source, tmp_path / "e", core=1, relations="none").digest]
    write_source(source, walk()[:-1], items)
    digests.append(import_dataset(source, tmp_path / "f", core=1, relations="none").digest)
    write_source(source, walk()[:-1], [{**item, "title": "other"} for item in items])
    digests.append(import_dataset(source, tmp_path / "g", core=1, relations="none").digest)
    assert len(set(digests)) == 4


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    import_dataset(write_source(tmp_path / "s", walk()), tmp_path / "d", core=1)
    return tmp_path / "d"


@pytest.mark.parametrize("rows", [range(2, 6), [7, 0, 7, 3], range(0), []])
def test_some_items_are_those_of_all(dataset: Path, rows: Sequence[int]) -> None:
    """Read alone, and from the table once that is in memory."""
    catalog, items = Catalog.open(dataset), Catalog.open(dataset).all_items()
    assert any(item.relations for item in items)
    for _ in range(2):
        assert catalog.items_at(rows) == [items[row] for row in rows]
        assert [item_id for part in catalog.ids() for item_id in part] == [item.id for item in items]
        assert len(catalog) == len(catalog.items)


@pytest.mark.parametrize("table", ["items", "interactions", "relations"])
def test_a_changed_table_is_refused(dataset: Path, table: str) -> None:
    file = dataset / f"{table}.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{table}\.parquet is not the one that was imported.*--force"):
        Catalog.open(dataset)
    file.unlink()
    with pytest.raises(DataError, match=rf"{table}\.parquet cannot be read"):
        Catalog.open(dataset)


def test_another_version_is_refused_naming_both_and_can_be_replaced(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps({**manifest, "version": 7}))
    with pytest.raises(
        DataError, match=r"version 7 .* reads version 1\. Import the source again: .* --force"
    ):
        Catalog.open(dataset)
    import_dataset(dataset.parent / "s", dataset, core=1, force=True)
    assert len(Catalog.open(dataset)) == 9


@pytest.mark.parametrize("content", ["[1]", '{"format": "other"}', "{", None])
def test_what_is_no_dataset_directory_is_refused_and_never_replaced(
    tmp_path: Path, content: str | None
) -> None:
    source, other = write_source(tmp_path / "s", walk()), tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("1")
    if content is not None:
        (other / "manifest.json").write_text(content)
    with pytest.raises(DataError):
        Catalog.open(other)
    with pytest.raises(DataError, match="is no dataset directory and is not replaced"):
        import_dataset(source, other, force=True)
    with pytest.raises(DataError, match=r"already there.*--force"):
        import_dataset(source, other)
    assert (other / "precious").read_text() == "1"


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_what_was_there(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before, digest, source = left_over(dataset.parent), Catalog.open(dataset).digest, dataset.parent / "s"
    write_source(source, walk(seed=5))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(importing, "content_digest", fail)
    with pytest.raises(type(error)):
        import_dataset(source, dataset, core=1, force=True)
    with pytest.raises(type(error)):
        import_dataset(source, dataset.parent / "new", core=1)
    assert left_over(dataset.parent) == before
    assert Catalog.open(dataset).digest == digest


def test_a_failure_between_the_two_renames_puts_the_old_one_back(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, digest, rename = left_over(dataset.parent), Catalog.open(dataset).digest, Path.rename
    failed: list[Path] = []

    def fail(self: Path, target: Path) -> Path:
        if target == dataset and not failed:
            failed.append(self)
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DataError, match="Input/output"):
        import_dataset(dataset.parent / "s", dataset, core=2, force=True)
    assert left_over(dataset.parent) == before
    assert Catalog.open(dataset).digest == digest


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    source = write_source(tmp_path / "s", walk())
    monkeypatch.setattr(importing, "write_atomic", lambda _, data: write_atomic(Path("/dev/full"), data))
    assert run(["data", "import", str(source), "--out", str(tmp_path / "d"), "--core", "1"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("Error: The disk is full")
    assert said.out == ""
    assert left_over(tmp_path) == ["s"]


def test_a_kill_leaves_nothing_half_written(dataset: Path) -> None:
    """Killed when everything but the last rename is done: no new directory, the old one whole."""
    digest, source = Catalog.open(dataset).digest, dataset.parent / "s"
    program = """
import os, signal, sys
from pathlib import Path
from earec_core.catalog import importing
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
importing.import_dataset(Path(sys.argv[1]), Path(sys.argv[2]), core=2, force=True)
"""
    for target in (dataset, dataset.parent / "new"):
        done = subprocess.run([sys.executable, "-c", program, source, target], check=False, env=os.environ)
        assert done.returncode == -9
    assert not (dataset.parent / "new").exists()
    assert Catalog.open(dataset).digest == digest
    import_dataset(source, dataset.parent / "new", core=1)


def test_importing_the_catalog_imports_no_torch() -> None:
    program = "import sys, earec_core.catalog; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_imports_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_source(tmp_path / "s", walk()), tmp_path / "d"
    assert run(["data", "import", str(source), "--out", str(out), "--core", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["counts"]["users"] == 12
    assert made["options"]["core"] == 2
    assert run(["data", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert run(["data", "show", str(out)]) == 0
    assert "users\t12" in capsys.readouterr().out
    assert run(["data", "import", str(source), "--out", str(out)]) == 2
    assert run(["data", "import", str(source), "--out", str(out), "--core", "2", "--force"]) == 0
    assert run(["data", "show", str(tmp_path)]) == 2


@given(n=st.integers(0, 40), size=st.integers(0, 40) | st.none(), seed=st.integers(0, 5))
def test_a_random_part_is_of_that_size_in_order_and_the_same_again(
    n: int, size: int | None, seed: int
) -> None:
    part = random_part(n, size, seed).tolist()
    assert len(part) == (n if size is None else min(n, size))
    assert part == sorted(set(part))
    assert set(part) <= set(range(n))
    assert part == random_part(n, size, seed).tolist()


def test_every_thing_has_the_same_chance_to_be_in_a_random_part() -> None:
    counts = Counter(i for seed in range(2000) for i in random_part(10, 3, seed).tolist())
    # 600 of each are expected, with a deviation of 20.
    assert all(abs(counts[i] - 600) < 120 for i in range(10))
