"""Importers on arbitrary input: a dataset directory that opens, or one sentence and nothing left."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earec_core.catalog import Catalog, import_dataset
from earec_core.errors import DataError

Files = Mapping[str, bytes]
FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck))

CSV_ITEMS = b'item_id,title,price\n1,"A, ""x""",1.5\n2,B,\n3,C 12" x,3\n'
CSV_USES = b"user_id,item_id,timestamp,rating\nu,1,1,5\nu,2,2,4\nv,3,2020-01-01,3\nv,1,3,1\n"
USES = b"user_id,item_id,timestamp,rating\nu,1,1,5\nu,2,2,4\nv,3,4,3\nv,1,3,1\n"
ITEM = {"asin": "1", "title": "A \ud83d", "also_buy": ["2"], "price": "$1", "image": ["https://x/1.jpg"]}
REVIEW = {"reviewerID": "u", "asin": "1", "overall": 5.0, "unixReviewTime": 1, "reviewText": "x"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pl.DataFrame(rows).write_parquet(content)
    return content.getvalue()


SOURCES: dict[str, Files] = {
    "generic csv": {
        "items.csv": CSV_ITEMS,
        "interactions.csv": USES,
        "relations.csv": b"item_id,related\n1,2\n",
    },
    "generic zipped": {"items.csv.gz": gzip.compress(CSV_ITEMS), "interactions.csv.gz": gzip.compress(USES)},
    "generic json lines": {
        "items.jsonl": lines(
            {"id": 1, "title": "A", "tags": ["x"], "d": {"a": 1}}, {"id": 2, "title": "B", "d": {}}
        ),
        "interactions.jsonl": lines({"user_id": "u", "item_id": 1, "timestamp": 2.5}),
    },
    "generic parquet": {
        "items.parquet": parquet(
            [{"item_id": "1", "title": "A", "image": b"x"}, {"item_id": "2", "title": "B"}]
        ),
        "interactions.csv": USES,
    },
    "movielens 100k": {
        "u.data": b"u\t1\t5\t30\nv\t2\t3\t10\n",
        "u.item": b"".join(b"%d|T|01-Jan-1995||http|" % n + b"|".join([b"1"] * 19) + b"\n" for n in (1, 2)),
    },
    "movielens 1m": {"ratings.dat": b"1::2::5::30\n", "movies.dat": b"2::A\xe9::Drama|War\n"},
    "movielens latest": {
        "ratings.csv": b"userId,movieId,rating,timestamp\n1,7,4.5,2\n1,6,2.0,1\n",
        "movies.csv": b'movieId,title,genres\n6,"A, The",Drama|War\n7,1984,(no genres listed)\n',
    },
    "amazon 2018": {"meta_X.json": lines(ITEM, {**ITEM, "asin": "2"}), "X_5.json": lines(REVIEW, REVIEW)},
    "amazon 2014": {"meta_X.json": repr(ITEM).encode("utf-8", "replace") + b"\n", "X.json": lines(REVIEW)},
    "amazon 2023": {
        "meta_X.jsonl.gz": gzip.compress(
            lines({"parent_asin": "1", "title": "A", "images": [{"large": "l"}]})
        ),
        "X.jsonl": lines({"user_id": "u", "asin": "9", "parent_asin": "1", "rating": 5.0, "timestamp": 1.5}),
    },
    "recbole": {
        "x.train.inter": b"user_id:token\titem_id:token\ttimestamp:float\nu\t1\t5\nu\t2\t6\n",
        "x.test.inter": b"user_id:token\titem_id:token\ttimestamp:float\nu\t1\t7\n",
        "x.item": b"item_id:token\ttitle:token_seq\tp:float\tv:float_seq\n1\tA\t-\t1  2 \n2\tB\t1\t\n",
    },
}


def is_complete_or_absent(files: Files) -> Catalog | None:
    """Import the files: the catalog, or None where they are refused in a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source, out = root / "source", root / "data"
        source.mkdir()
        for name, content in files.items():
            (source / name).write_bytes(content)
        try:
            catalog: Catalog | None = import_dataset(source, out, core=1)
            said = "."
        except DataError as error:
            catalog = None
            said = error.problem
        assert said.endswith(".")
        assert "\n" not in said
        assert sorted(path.name for path in root.iterdir()) == (["data", "source"] if catalog else ["source"])
        if catalog:
            assert Catalog.open(out).digest == catalog.digest
            assert len(catalog.all_items()) == len(catalog)
            assert catalog.leave_one_out().train is not None
        return catalog


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_is_read_as_it_is(name: str) -> None:
    assert is_complete_or_absent(SOURCES[name]) is not None


@st.composite
def damaged(draw: st.DrawFn, files: Files) -> Files:
    """The files of a source with a few bytes of one changed, gone or new."""
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("cut", "flip", "insert", "remove", "repeat"))):
            case "cut":
                del content[place:]
            case "flip" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[place:place] = draw(
                    st.sampled_from(
                        (
                            b'"',
                            b"\n",
                            b"\r",
                            b",",
                            b"\t",
                            b"{",
                            b"[",
                            b"\0",
                            b"\xff",
                            b"9" * 80,
                            b"NaN",
                            b"null",
                            b"{}",
                        )
                    )
                    | st.binary(max_size=8)
                )
            case "remove":
                del content[place : place + draw(st.integers(1, 8))]
            case "repeat":
                content[place:place] = content[: draw(st.integers(0, 200))]
    return {**files, name: bytes(content)}


@pytest.mark.parametrize("name", SOURCES)
def test_a_damaged_source_is_read_or_refused(name: str) -> None:
    @FUZZ
    @given(damaged(SOURCES[name]))
    def check(files: Files) -> None:
        is_complete_or_absent(files)

    check()


TEXTS = st.text(max_size=6) | st.sampled_from(
    ("", " ", "\ud83d", "nan", "1e5", "\x00", "<|im_end|>", "2020-01-01", "\u202e")
)
NUMBERS = st.integers(-(2**140), 2**140) | st.floats() | st.booleans()
VALUES = st.recursive(
    st.none() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


IDS = st.sampled_from(("1", "2", "3", 1, 2)) | TEXTS.filter(str.strip)
TIMES = st.integers(0, 9) | st.floats(0, 9) | st.sampled_from(("3", "2.5", "1e3"))


@st.composite
def rows_of(
    draw: st.DrawFn, wanted: Mapping[str, st.SearchStrategy[Any]], wild: Sequence[bool] = (*[False] * 4, True)
) -> list[dict[str, Any]]:
    """Rows of what is wanted under each name and of anything under others; sometimes of anything under one.

    Args:
        wild: whether so, one of them by chance.
    """
    anything = draw(st.sampled_from(sorted(wanted))) if draw(st.sampled_from(wild)) else None
    others = draw(st.dictionaries(TEXTS.filter(lambda name: name not in wanted), st.just(VALUES), max_size=2))
    kinds = {**wanted, **others, **({anything: VALUES} if anything else {})}
    needed = {
        name: kind
        for name, kind in kinds.items()
        if name in wanted and name.endswith(("id", "ID", "asin", "ime", "stamp"))
    }
    rest = {name: kind for name, kind in kinds.items() if name not in needed}
    return draw(st.lists(st.fixed_dictionaries(needed, optional=rest), max_size=5))


ITEMS = {
    "title": TEXTS,
    "category": st.lists(TEXTS, max_size=2),
    "brand": st.none() | TEXTS,
    "image": VALUES,
    "details": VALUES,
}


@FUZZ
@given(
    rows_of({"item_id": IDS, **ITEMS}),
    rows_of({"user_id": IDS, "item_id": IDS, "timestamp": TIMES, "rating": VALUES}),
    rows_of({"item_id": IDS, "related_id": IDS, "kind": TEXTS}),
)
def test_any_json_lines_are_read_or_refused(items: Any, uses: Any, relations: Any) -> None:
    first = {"user_id": "u", "item_id": "1", "timestamp": 1}
    is_complete_or_absent(
        {
            "items.jsonl": lines({"item_id": "1", "title": "A"}, *items),
            "interactions.jsonl": lines(first, *uses),
            "relations.jsonl": lines({"item_id": "1", "related_id": "2"}, *relations),
        }
    )


@FUZZ
@given(
    rows_of(
        {"asin": IDS, **ITEMS, "categories": st.lists(st.lists(TEXTS)), "related": VALUES, "also_buy": VALUES}
    ),
    rows_of({"asin": IDS, "reviewerID": IDS, "overall": VALUES, "unixReviewTime": TIMES}),
    st.booleans(),
)
def test_any_amazon_rows_are_read_or_refused(items: Any, reviews: Any, literal: bool) -> None:
    described = "".join(f"{row!r}\n" for row in (ITEM, *items)).encode("utf-8", "backslashreplace")
    meta = described if literal else lines(ITEM, *items)
    is_complete_or_absent({"meta_X.json": meta, "X.json": lines(REVIEW, *reviews)})


KINDS = (
    pl.Int8(), pl.UInt64(), pl.Int128(), pl.Float32(), pl.Float64(), pl.Boolean(), pl.String(), pl.Binary(),
    pl.Date(), pl.Time(), pl.Datetime("us"), pl.Datetime("ns", "UTC"), pl.Duration("ms"), pl.Categorical(),
    pl.Decimal(12, 2), pl.Null(), pl.Enum(["a", "b"]), pl.List(pl.String()), pl.List(pl.List(pl.Float32())),
    pl.Array(pl.String(), 2), pl.Array(pl.Float32(), (2, 2)),
    pl.Struct({"bytes": pl.Binary(), "path": pl.String()}),
    pl.List(pl.Struct({"bytes": pl.Binary()})), pl.List(pl.Null()), pl.List(pl.Binary()),
    pl.List(pl.List(pl.String())),
)  # fmt: skip


@FUZZ
@given(st.data())
def test_any_columns_of_parquet_are_read_or_refused(data: st.DataObject) -> None:
    from polars.testing.parametric import column, dataframes

    def table(ids: Mapping[str, list[str]], *names: str) -> bytes:
        kinds = {
            name: data.draw(st.sampled_from(KINDS[:17] if name == "timestamp" else KINDS)) for name in names
        }
        columns = [column(name, dtype=kind, allow_null=name != "timestamp") for name, kind in kinds.items()]
        rows = data.draw(dataframes(columns, min_size=3, max_size=3))
        wild = data.draw(st.sampled_from((None, *ids, *[None] * 8)))
        known = [pl.Series(name, values) for name, values in ids.items() if name != wild]
        content = io.BytesIO()
        rows.with_columns(known).write_parquet(content)
        return content.getvalue()

    is_complete_or_absent(
        {
            "items.parquet": table(
                {"item_id": ["1", "2", "3"], "title": ["A", "B", "C"]}, "brand", "image", "x"
            ),
            "interactions.parquet": table(
                {"user_id": ["u"] * 3, "item_id": ["1", "2", "1"]}, "timestamp", "rating"
            ),
        }
    )
