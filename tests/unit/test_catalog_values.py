"""Values as sources write them, against pandas, RecBole's own loop and plain JSON; files that belong together."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earec_core.catalog import Catalog, import_dataset
from earec_core.catalog.formats import delimited, files, lines
from earec_core.cli import run
from earec_core.errors import DataError

Make = Callable[..., Path]
_folder = tempfile.TemporaryDirectory()
"""For hypothesis, whose examples share a test's fixtures."""
PLAIN = settings(max_examples=100)
ITEMS = b"item_id,title\n1,A\n2,B\n"
INTER = b"user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def source(tmp_path: Path) -> Make:
    """A folder of the files given by name."""

    def make(**contents: bytes) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder

    return make


def refused(folder: Path, said: str, **options: Any) -> None:
    out = folder.parent / "data"
    with pytest.raises(DataError, match=said):
        import_dataset(folder, out, **{"core": 1, **options})
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def imported(folder: Path, **options: Any) -> Catalog:
    return import_dataset(folder, folder.parent / "data", **{"core": 1, **options})


@PLAIN
@given(
    st.lists(st.lists(st.text('ab"\n ,1.', max_size=5), min_size=2, max_size=2), min_size=1, max_size=5),
    st.sampled_from(("\n", "\r\n")),
)
def test_csv_is_read_as_pandas_reads_it(rows: list[list[str]], end: str) -> None:
    pandas = pytest.importorskip("pandas")
    content = ("item_id,title\n" + "".join(",".join(row) + "\n" for row in rows)).replace("\n", end).encode()
    try:
        with warnings.catch_warnings():
            # Of a row of more fields it drops those; here it is refused, unless there is nothing in it.
            warnings.simplefilter("ignore", pandas.errors.ParserWarning)
            truth = pandas.read_csv(io.BytesIO(content), dtype=str, index_col=False, na_filter=False)
    except pandas.errors.ParserError:
        truth = None
    file = Path(_folder.name) / "items.csv"
    file.write_bytes(content)
    try:
        table = delimited.read_csv(file, ("item_id", "title")).fill_null("")
    except DataError as error:
        assert truth is None or "fields, not 2" in error.problem or "never closed" in error.problem  # noqa: PT017
        return
    if truth is None:
        # The row that pandas counts too many fields in has nothing in any of them.
        parsed = csv.reader(io.StringIO(content.decode(), newline=""))
        assert any(len(row) > 2 and not any(map(str.strip, row)) for row in parsed)
        return
    rows_of_pandas = truth.itertuples(index=False, name=None)
    assert table.rows() == [row for row in rows_of_pandas if any(map(str.strip, row))]


@PLAIN
@given(st.text(st.sampled_from('a\ud83d\ude00\udfff\u20ac\\u"d8')))
def test_halves_of_emoji_are_replaced_and_pairs_joined(text: str) -> None:
    file = Path(_folder.name) / "items.jsonl"
    file.write_text(json.dumps({text: [text, {"a": text}]}) + "\n")
    pair = re.compile("[\ud800-\udbff][\udc00-\udfff]")
    joined = pair.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    wanted = re.sub("[\ud800-\udfff]", "\ufffd", joined)
    assert list(lines.json_lines(file)) == [{wanted: [wanted, {"a": wanted}]}]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@PLAIN
@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, min_size=1, max_size=4), min_size=1, max_size=4))
def test_python_literals_are_read_as_the_same_rows_in_json(rows: list[dict[str, Any]]) -> None:
    file = Path(_folder.name) / "items.jsonl"
    file.write_text("".join(f"{row!r}\n" for row in rows), encoding="utf-8")
    assert list(lines.json_lines(file)) == rows


@pytest.mark.parametrize(
    "line", ["{'a': print(1)}", "{'a': b'x'}", "{'a': {1, 2}}", "{'a': 1j}", "['a']", "{'a': ("]
)
def test_what_no_json_could_hold_is_no_literal(tmp_path: Path, line: str) -> None:
    file = tmp_path / "meta.json"
    for content, number in ((f"{line}\n", 1), (f"{{'a': None}}\n{line}\n", 2)):
        file.write_text(content)
        with pytest.raises(DataError, match=f"line {number} is not"):
            list(lines.json_lines(file))


@settings(PLAIN, max_examples=30)
@given(st.lists(st.text("0123456789 .-e", max_size=8), min_size=1, max_size=4))
def test_numbers_in_a_row_are_read_as_recbole_reads_them(texts: list[str]) -> None:
    folder = Path(_folder.name) / "recbole"
    folder.mkdir(exist_ok=True)
    rows = [f"{n}\tT\t{text}\n" for n, text in enumerate(texts)]
    (folder / "x.item").write_text("item_id:token\ttitle:token\tv:float_seq\n" + "".join(rows))
    (folder / "x.inter").write_bytes(INTER + b"".join(b"u\t%d\t1\n" % n for n in range(len(texts))))
    catalog = import_dataset(folder, Path(_folder.name) / "data", core=1, force=True)

    def by_recbole(text: str) -> list[float] | None:
        try:
            return [float(word) for word in filter(None, text.split(" "))]
        except ValueError:  # where RecBole stops
            return None

    vectors = [item.fields.get("v") or [] for item in catalog.all_items()]
    assert vectors == [by_recbole(text) or [] for text in texts]


def test_values_that_are_not_needed_are_not_checked_and_needed_ones_are_named(source: Make) -> None:
    uses = b"user_id,item_id,timestamp,rating\nu,1,1,5\n\nu,2,2,good\n"
    folder = source(items__csv=ITEMS + b"\n3,C\n", interactions__csv=uses)
    assert imported(folder).interactions.height == 2
    import_dataset(folder, folder.parent / "data", core=1, force=True)
    with pytest.raises(
        DataError, match=r"rating in .*interactions\.csv line 4 is 'good', which is no number"
    ):
        import_dataset(folder, folder.parent / "data", core=1, min_rating=3, force=True)


@pytest.mark.parametrize("rating", ["nan", "inf", "NaN", "-inf"])
def test_a_rating_that_is_no_number_is_not_above_any_other(source: Make, rating: str) -> None:
    uses = f"user_id,item_id,rating\nu,1,5\nu,2,{rating}\n".encode()
    refused(
        source(items__csv=ITEMS, interactions__csv=uses),
        r"interactions\.csv line 3 is .*no number",
        min_rating=3,
    )


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("items.csv", b'item_id,title\n1,"A\nB"\n ,B\n', "items.csv line 4"),
        (
            "items.jsonl",
            b'{"item_id": "1", "title": "A"}\n\n{"item_id": " ", "title": "B"}\n',
            "items.jsonl line 3",
        ),
        ("items.jsonl", b'{"item_id": "1", "title": "A"}\n{"title": "B"}\n', "items.jsonl line 2"),
    ],
)
def test_an_item_without_id_is_named_by_its_line(source: Make, name: str, content: bytes, place: str) -> None:
    refused(
        source(**{name.replace(".", "__"): content}), f"1 of 2 items have no item_id; the first is .*{place}"
    )


def test_blank_ids_of_users_and_items_drop_their_interactions(source: Make) -> None:
    rows = [("u", "1"), ("", "1"), (" ", "2"), ("u", ""), (None, "1"), ("u", "2")]
    uses = "".join(json.dumps({"user_id": u, "item_id": i, "timestamp": 1}) + "\n" for u, i in rows).encode()
    catalog = imported(source(items__csv=ITEMS, interactions__jsonl=uses))
    assert catalog.interactions.select("user_id", "item").rows() == [("u", 0), ("u", 1)]


def test_mixed_kinds_are_kept_as_text_where_nothing_needs_them(source: Make) -> None:
    values: list[Any] = [{"a": 1}, 2, "x", [1, "y"], None, 2**200]
    rows = [{"item_id": n, "title": "T", "more": value, "big": 2**300 + n} for n, value in enumerate(values)]
    catalog = imported(source(items__jsonl="".join(json.dumps(row) + "\n" for row in rows).encode()))
    stored = [item.fields.get("more") for item in catalog.all_items()]
    assert stored == ['{"a": 1}', "2", "x", '[1, "y"]', None, str(2**200)]
    assert catalog.item(1).fields["big"] == str(2**300 + 1)


def test_numbers_of_any_length_are_read_from_csv(source: Make) -> None:
    items = f"item_id,title,n\n{'9' * 100},A,{'9' * 100}\n2,B,5\n".encode()
    catalog = imported(source(items__csv=items))
    assert [item.id for item in catalog.all_items()] == ["9" * 100, "2"]
    assert catalog.items["n"].to_list() == [1e100, 5.0]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (
            {"items__csv": ITEMS, "items__parquet": b""},
            r"several tables of items: items\.csv, items\.parquet",
        ),
        ({"a__inter": INTER, "b__inter": INTER}, r"several data sets.*a\.inter, b\.inter"),
        (
            {"x__inter": INTER, "x__train__inter": INTER},
            r"a whole and its parts: x\.inter, x\.train\.inter|several",
        ),
        ({"x__inter": INTER, "a__item": b"", "b__item": b""}, r"several files of items.*x\.item"),
        (
            {
                "x__train__inter": INTER + b"u\t1\t1\n",
                "x__test__inter": b"user_id:token\titem_id:token\nu\t1\n",
            },
            r"x\.test\.inter has the columns user_id, item_id, x\.train\.inter has",
        ),
        ({"x__inter": INTER + b"u\t1\t1\t4\t5\n"}, r"x\.inter line 2 has 5 fields, not 3"),
        ({"items__csv": b"item_id,title\n1,A\n2,B,C,D\n"}, r"items\.csv line 3 has 4 fields, not 2"),
        (
            {"items__csv": b'item_id,title\n1,A\n2,"B\n3,C\n'},
            r"items\.csv line 3: a quote is opened and never closed",
        ),
        ({"items__csv": b"item_id,title\n1,A\n2,\xff\n"}, r"items\.csv line 3 is not UTF-8"),
        ({"items__jsonl": json.dumps({"item_id": 1, "title": "A"}).encode("utf-16")}, "is UTF-16, not UTF-8"),
        ({"items__csv__gz": gzip.compress(ITEMS.decode().encode("utf-16-be"))}, "is UTF-16, not UTF-8"),
    ],
)
def test_what_is_ambiguous_or_broken_is_named(source: Make, contents: dict[str, bytes], said: str) -> None:
    refused(source(**contents), said)


META = b'{"asin": "1", "title": "A"}\n'
REVIEW = b'{"reviewerID": "u", "asin": "1", "overall": 5, "unixReviewTime": 1}\n'


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (
            {"meta_X__json": META, "X__json": REVIEW, "X_5__json__gz": gzip.compress(REVIEW)},
            "the same category twice",
        ),
        (
            {"meta_X__json": META, "meta_X__json__gz": gzip.compress(META), "X__json": REVIEW},
            "same category twice",
        ),
        (
            {"meta_X__json": META, "meta_Y__json": b'{"parent_asin": "2"}\n', "X__json": REVIEW},
            r"different years: meta_X\.json, meta_Y\.json",
        ),
        (
            {"meta_X__json": META, "a__json": b'{"a": 1}\n', "b__json": b'{"b": 1}\n'},
            r"a\.json, b\.json hold something",
        ),
        ({"meta_X__json": META, "X__json": REVIEW, "Y__json": b"{broken\n"}, r"Y\.json line 1 is not JSON"),
    ],
)
def test_amazon_files_that_do_not_go_together_are_named(
    source: Make, contents: dict[str, bytes], said: str
) -> None:
    refused(source(**contents), said)


def test_reviews_are_read_alike_by_polars_and_line_by_line(source: Make, tmp_path: Path) -> None:
    rows = [
        {"reviewerID": f"u{n % 3}", "asin": str(n % 4), "overall": n % 5 + 0.5, "unixReviewTime": 10**12 + n}
        for n in range(40)
    ]
    meta = b"".join(b'{"asin": "%d", "title": "A"}\n' % n for n in range(4))
    plain = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    odd = b"".join(f"{ {**row, 'overall': str(row['overall']), 'x': None} }\n".encode() for row in rows)
    catalogs = []
    for name, reviews in (("plain", plain), ("literal", odd), ("zipped", gzip.compress(odd))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "meta_X.json").write_bytes(meta)
        (folder / ("X.json.gz" if name == "zipped" else "X.json")).write_bytes(reviews)
        catalogs.append(import_dataset(folder, tmp_path / f"{name}-data", core=1, min_rating=2))
    assert {catalog.digest for catalog in catalogs} == {catalogs[0].digest}
    assert catalogs[0].interactions.height == sum(row["overall"] >= 2 for row in rows)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device, Path.mkdir])
@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("items.csv", {}),
        ("items.parquet", {}),
        ("interactions.jsonl", {"items__csv": ITEMS}),
        ("x.inter", {}),
        ("u.data", {"u__item": b""}),
        ("meta_X.json", {"X__json": REVIEW}),
        ("X.json", {"meta_X__json": META}),
    ],
)
def test_a_pipe_or_a_device_is_never_read(
    source: Make, make: Callable[[Path], None], name: str, others: dict[str, bytes]
) -> None:
    folder = source(**others)
    make(folder / name)
    refused(folder, f"{name} is a (pipe or a device|folder), not a file")


@pytest.mark.parametrize("depth", [65, 1_000, 100_000])
@pytest.mark.parametrize("kind", ["list", "object", "literal"])
def test_what_is_nested_too_deeply_is_refused(source: Make, depth: int, kind: str) -> None:
    deep = b"[" * depth + b"]" * depth if kind == "list" else b'{"a":' * depth + b"1" + b"}" * depth
    line = b'{"item_id": "1", "title": "]]]", "x": ' + deep + b"}\n"
    name = "meta_X__json" if kind == "literal" else "items__jsonl"
    line = line.replace(b'"item_id"', b"'asin'") if kind == "literal" else line
    refused(source(**{name: line, "X__json": REVIEW}), "line 1 is nested more than 64 deep")


def test_brackets_in_texts_nest_nothing(source: Make) -> None:
    rows = b'{"item_id": "1", "title": "' + b"[{" * 100 + b'"}\n'
    assert imported(source(items__jsonl=rows)).item(0).title == "[{" * 100


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "inter"])
def test_too_many_columns_are_refused(source: Make, kind: str) -> None:
    count = 12_000 if kind == "parquet" else 100_000
    names = ["item_id", "title", *(f"c{n}" for n in range(count))]
    row = dict.fromkeys(names, "1")
    content = io.BytesIO()
    if kind == "parquet":
        pl.DataFrame({name: ["1"] for name in names}).write_parquet(content)
    text = {"csv": ",".join(names) + "\n", "inter": "\t".join(f"{n}:token" for n in names) + "\n"}.get(kind)
    data = content.getvalue() or (text or json.dumps(row) + "\n").encode()
    refused(
        source(**{f"{'x' if kind == 'inter' else 'items'}__{kind}": data}),
        f"{count + 2:,} columns, more than 10,000",
    )


@pytest.mark.parametrize("name", ["items.csv.gz", "items.jsonl.gz", "meta_X.json.gz", "X.json.gz"])
@pytest.mark.parametrize("line", [b'{"asin": "1", "reviewerID": "u", "item_id": "1"}\n', b"\0"])
def test_a_bomb_is_refused_before_it_fills_the_memory(
    source: Make, monkeypatch: pytest.MonkeyPatch, name: str, line: bytes
) -> None:
    monkeypatch.setattr(files, "_FREE", 1 << 20)
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(lines, "frame", lambda *_: pytest.fail("it makes a table"))
    bomb = gzip.compress(line * ((16 << 20) // len(line)))
    others = (
        {"X__json": REVIEW} if name.startswith("meta") else {"meta_X__json": META} if name[0] == "X" else {}
    )
    refused(
        source(**{name.replace(".", "__"): bomb, **others}), "becomes more than|is longer than|hold something"
    )


def test_parquet_of_more_rows_or_text_than_its_bytes_hold_is_refused(
    source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source()
    pl.select(item_id=pl.repeat("a", 3_000_000), title=pl.repeat("b", 3_000_000)).write_parquet(
        folder / "items.parquet"
    )
    refused(folder, "says that it has 3,000,000 rows")
    pl.select(item_id=pl.int_range(9).cast(pl.String), title=pl.repeat("x" * 10**6, 9)).write_parquet(
        folder / "items.parquet"
    )
    monkeypatch.setattr(files, "_FREE", 1 << 20)
    refused(folder, "becomes more than 1 MiB")


def test_bytes_count_in_the_digest(source: Make, tmp_path: Path) -> None:
    folder, digests = source(), []
    for n, content in enumerate((b"x", b"x", b"y")):
        columns = {
            "item_id": ["1"],
            "title": ["A"],
            "image": [content],
            "photo": [{"bytes": content, "path": None}],
        }
        pl.DataFrame(columns).write_parquet(folder / "items.parquet")
        digests.append(import_dataset(folder, tmp_path / str(n), core=1).digest)
    assert digests[0] == digests[1] != digests[2]


def test_leftovers_of_killed_imports_go_with_the_next(source: Make) -> None:
    folder = source(items__csv=ITEMS)
    old, new, other = (
        folder.parent / f".{name}.{'0' * 11}{n}.tmp" for n, name in enumerate(("data", "data", "d"))
    )
    for path in (old, new, other):
        path.mkdir()
        (path / "items.parquet").touch()
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    imported(folder)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", None), ("digests", []), ("counts", {}), ("options", 1), ("base", None), ("digest", 3)],
)
def test_a_manifest_of_wrong_types_is_damaged(source: Make, key: str, value: Any) -> None:
    file = imported(source(items__csv=ITEMS)).path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(DataError, match=f"manifest.json is damaged: its {key}"):
        Catalog.open(file.parent)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{", None])
def test_a_manifest_that_is_none_is_one_sentence(
    source: Make, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = imported(source(items__csv=ITEMS)).path / "manifest.json"
    if content is None:
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    assert run(["data", "show", str(file.parent)]) == 2
    assert re.fullmatch(r"Error: .*manifest\.json is .*--force`\.\n", capsys.readouterr().err)
    with pytest.raises(DataError, match="is no dataset directory and is not replaced"):
        import_dataset(file.parents[1] / "source", file.parent, core=1, force=True)
