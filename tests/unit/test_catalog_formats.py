"""The source formats, on small files written here and on the real folders; bad input."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from earec_core.catalog import Catalog, import_dataset
from earec_core.cli import run

Files = Mapping[str, str | bytes]


def write_files(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def arguments(source: Path, out: Path, options: Mapping[str, Any]) -> list[str]:
    """The command line of an import with core 1, unless the options say otherwise."""
    rest: dict[str, Any] = {"core": 1, **options}
    words = [f"--column={ours}={theirs}" for ours, theirs in rest.pop("columns", {}).items()]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in rest.items()]
    return ["data", "import", str(source), "--out", str(out), *words]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Catalog]:
    """Write files into a folder and import it with core 1."""

    def made(files: Files, **options: Any) -> Catalog:
        source = write_files(tmp_path / "source", files)
        return import_dataset(source, tmp_path / "data", **{"core": 1, **options})

    return made


def json_lines(rows: Sequence[Mapping[str, Any]], zipped: bool = False) -> bytes:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(content) if zipped else content


def histories(catalog: Catalog) -> dict[str, list[str]]:
    ids, sequences = catalog.items["item_id"].to_list(), catalog.sequences()
    return {user: [ids[i] for i in sequences.of(n)] for n, user in enumerate(sequences.users)}


def test_movielens_100k(make: Callable[..., Catalog]) -> None:
    flags = {"1": [3, 4, 5], "2": [], "3": [1]}
    titles = {"1": "Toy Story (1995)", "2": "Été\x85 (1996)", "3": "Se7en"}
    rows = [
        "|".join([i, titles[i], "01-Jan-1995", "", "http://", *["1" if g in on else "0" for g in range(19)]])
        for i, on in flags.items()
    ]
    uses = "u\t2\t5\t30\nu\t1\t3\t10\nv\t3\t1\t20\n"
    catalog = make({"u.data": uses, "u.item": "\n".join(rows).encode("latin-1")})
    assert histories(catalog) == {"u": ["1", "2"], "v": ["3"]}
    assert [i.fields.get("category") for i in catalog.all_items()] == [
        "Animation, Children's, Comedy",
        None,
        "Action",
    ]
    assert [i.title for i in catalog.all_items()] == ["Toy Story (1995)", "Été (1996)", "Se7en"]
    assert catalog.manifest["options"]["format"] == "movielens"


def test_movielens_1m(make: Callable[..., Catalog]) -> None:
    catalog = make(
        {
            "ratings.dat": "1::11::5::978300760\r\n1::10::3::978300750\r\n",
            "movies.dat": '10::Star Wars: Épisode (1977)::Action|Sci-Fi\n11::"B" C::Drama\n'.encode(
                "latin-1"
            ),
        },
        min_rating=3,
    )
    assert histories(catalog) == {"1": ["10", "11"]}
    assert catalog.item(0).fields["category"] == "Action, Sci-Fi"
    assert [catalog.item(row).title for row in range(2)] == ["Star Wars: Épisode (1977)", '"B" C']


def test_movielens_latest(make: Callable[..., Catalog]) -> None:
    catalog = make(
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,7,4.5,2\n1,6,2.0,1\n1,8,4.0,3\n",
            "movies.csv": 'movieId,title,genres\n6,"A, The",Drama|War\n7,1984,(no genres listed)\n8,C,War\n',
        },
        min_rating=4,
    )
    assert histories(catalog) == {"1": ["7", "8"]}
    assert [(i.title, i.fields.get("category")) for i in catalog.all_items()] == [
        ("1984", None),
        ("C", "War"),
    ]


@pytest.mark.parametrize("zipped", [False, True])
def test_amazon_2018(make: Callable[..., Catalog], zipped: bool) -> None:
    meta = [
        {
            "asin": "A",
            "title": "Pens &amp; <b>Ink</b> &quot;x&quot;",
            "description": ["Good  pens.", "", "Blue."],
            "category": ["Office", "Pens"],
            "brand": "Acme",
            "imageURLHighRes": ["https://x/a.jpg"],
            "also_view": ["B"],
            "also_buy": ["C", "unknown"],
            "price": "$1.00",
            "similar_item": "<table>",
        },
        {"asin": "B", "title": "var getTime = 1;", "description": [], "category": []},
        {"asin": "C", "title": "C" * 3000, "description": "one text", "details": {"a": 1}},
    ]
    reviews = [
        {"reviewerID": "u", "asin": i, "overall": 5.0, "unixReviewTime": t, "reviewText": "x", "vote": v}
        for i, t, v in (("B", 3, "2"), ("A", 1, None), ("C", 2, "1,001"))
    ]
    ending = ".json.gz" if zipped else ".json"
    files = {
        f"meta_Office{ending}": json_lines(meta, zipped),
        f"Office_5{ending}": json_lines(reviews, zipped),
    }
    catalog = make(files)
    assert catalog.manifest["options"]["format"] == "amazon-2018"
    assert histories(catalog) == {"u": ["A", "C", "B"]}
    item = catalog.item(0)
    assert item.title == 'Pens & <b>Ink</b> "x"'
    assert item.fields == {
        "item_id": "A",
        "title": item.title,
        "description": "Good pens. Blue.",
        "category": "Office, Pens",
        "brand": "Acme",
        "image": "https://x/a.jpg",
        "price": "$1.00",
    }
    assert catalog.items["item_id"].gather(list(item.relations)).to_list() == ["C", "B"]
    assert catalog.item(1).title is None
    assert catalog.item(2).title == "C" * 3000
    assert catalog.item(2).fields["description"] == "one text"


def test_amazon_2023(make: Callable[..., Catalog]) -> None:
    meta = [
        {
            "parent_asin": i,
            "title": f"T{i}",
            "main_category": "Office",
            "categories": ["Office", "Paper"] if i == "A" else [],
            "store": "Shop",
            "features": ["thin", "white"],
            "description": [],
            "images": [{"thumb": "https://t", "large": "https://l", "hi_res": None}],
            "bought_together": None,
            "details": {"Brand": "x"},
        }
        for i in "AB"
    ]
    reviews = [
        {"user_id": "u", "asin": "child", "parent_asin": i, "rating": 4.0, "timestamp": 1600000000000 + t}
        for i, t in (("B", 2), ("A", 1))
    ]
    files = {"meta_Office.jsonl": json_lines(meta), "Office.jsonl.gz": json_lines(reviews, True)}
    catalog = make(files, columns={"description": "description|features"})
    assert catalog.manifest["options"]["format"] == "amazon-2023"
    assert histories(catalog) == {"u": ["A", "B"]}
    a, b = catalog.all_items()
    assert (a.fields["category"], b.fields["category"]) == ("Office, Paper", "Office")
    assert (a.fields["brand"], a.fields["image"]) == ("Shop", "https://l")
    assert a.fields["description"] == "thin, white"


def test_recbole(make: Callable[..., Catalog]) -> None:
    catalog = make(
        {
            "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t5\t2.5\n1\t8\t1\t1.5\n",
            "x.item": (
                "item_id:token\tmovie_title:token_seq\tclass:token_seq\tvector:float_seq\n"
                '7\t"Quoted" Story\tAction Drama\t0.5 1\n8\tB\t\t1 2\n'
            ),
        }
    )
    assert histories(catalog) == {"1": ["8", "7"]}
    item = catalog.item(0)
    assert (item.title, item.fields["category"]) == ('"Quoted" Story', "Action Drama")
    assert item.fields["vector"] == [0.5, 1.0]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_generic_in_every_file_type(make: Callable[..., Catalog], tmp_path: Path, ending: str) -> None:
    items = pl.DataFrame({"id": ["01", "1"], "heading": ["A &amp; B", "C"], "maker": ["", "M"], "n": [1, 2]})
    uses = pl.DataFrame({"who": ["u", "u"], "id": ["1", "01"], "date": ["2020-02-01", "2020-01-31"]})

    def content(table: pl.DataFrame) -> bytes:
        if ending == "parquet":
            table.write_parquet(tmp_path / "t")
            return (tmp_path / "t").read_bytes()
        text = (table.write_csv() if "csv" in ending else table.write_ndjson()).encode()
        return gzip.compress(text) if ending.endswith("gz") else text

    files = {f"items.{ending}": content(items), f"interactions.{ending}": content(uses)}
    catalog = make(files, columns={"title": "heading", "brand": "maker", "user_id": "who", "item_id": "id"})
    assert histories(catalog) == {"u": ["01", "1"]}
    assert catalog.all_items()[0].fields["n"] == 1
    assert [(i.id, i.title, i.fields.get("brand")) for i in catalog.all_items()] == [
        ("01", "A & B", None),
        ("1", "C", "M"),
    ]


def test_a_mapping_takes_the_first_that_is_not_empty_and_joins_lists(make: Callable[..., Catalog]) -> None:
    rows = [
        {
            "item_id": 1,
            "title": "A",
            "short": " ",
            "long": "L",
            "kinds": ["x", "y"],
            "image": ["a.jpg", "b.jpg"],
            "tags": ["", " "],
        },
        {"item_id": 2, "title": "B", "short": "S", "long": "L", "kinds": [], "image": [], "tags": ["t"]},
        {"item_id": 3, "title": "C", "short": None, "long": None, "kinds": None, "image": None},
    ]
    catalog = make(
        {"items.jsonl": json_lines(rows)}, columns={"description": "short|long", "category": "kinds"}
    )
    items = catalog.all_items()
    assert [i.fields.get("description") for i in items] == ["L", "S", None]
    assert [i.fields.get("category") for i in items] == ["x, y", None, None]
    # Of any other column the values stay as they are, what is empty left out.
    assert [i.fields.get("image") for i in items] == [["a.jpg", "b.jpg"], None, None]
    assert [i.fields.get("tags") for i in items] == [None, ["t"], None]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["2020-01-02", "2020-01-01"], [1577836800.0, 1577923200.0]),
        (["2020-01-01T02:00:00+02:00", "2020-01-01T00:00:01Z"], [1577836800.0, 1577836801.0]),
        (["10.5", "9"], [9.0, 10.5]),
    ],
)
def test_times_may_be_numbers_or_dates(
    make: Callable[..., Catalog], times: list[str], seconds: list[float]
) -> None:
    uses = "user_id,item_id,timestamp\n" + "".join(f"u,{n},{time}\n" for n, time in enumerate(times))
    catalog = make({"items.csv": "item_id,title\n0,A\n1,B\n", "interactions.csv": uses})
    assert catalog.interactions["timestamp"].to_list() == seconds


ITEMS = "item_id,title\n1,A\n2,B\n"
USES = "user_id,item_id,timestamp\nu,1,1\nu,2,2\n"
META, REVIEW = {"asin": "A", "title": "T"}, {"reviewerID": "u", "asin": "A", "unixReviewTime": 1}


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"readme": ""}, {}, "no files of a known format.*--format"),
        ({"items.csv": ITEMS}, {"format": "excel"}, "no format 'excel'.*movielens"),
        (
            {"items.csv": "sku,title\n1,A\n"},
            {},
            r"items\.csv has no column item_id; it has sku, title.*--column item_id=",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": "who,item_id\n"},
            {},
            r"interactions\.csv has no column user_id.*--column",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": USES},
            {"columns": {"brand": "maker"}},
            "'maker', named for brand.*title",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": USES},
            {"core": 3},
            "None of .* 2 interactions is left after 3-core",
        ),
        ({"items.csv": ITEMS, "interactions.csv": USES}, {"min_rating": 3}, "no rating.*--column rating="),
        (
            {"items.csv": ITEMS, "interactions.csv": USES},
            {"relations": "given"},
            "gives no relations.*cooccurrence",
        ),
        (
            {"items.csv": "item_id,name2\n1,A\n"},
            {},
            "No item of .* has a title; columns: item_id, name2.*--column title=",
        ),
        ({"items.csv": "item_id,title\n1,\n2, \n"}, {}, "No item of .* has a title"),
        ({"items.csv": "item_id,title\n"}, {}, "is empty"),
        ({"items.csv": ""}, {}, "cannot be read"),
        ({"items.jsonl": ""}, {}, "is empty"),
        ({"items.csv": "item_id,title\n,A\n2,B\n"}, {}, "1 of 2 items have no item_id"),
        (
            {"items.jsonl": '{"item_id": 1, "title": "A"}\n{"item_id": 2,\n'},
            {},
            r"items\.jsonl line 2 is not JSON",
        ),
        ({"items.jsonl": '{"item_id": 1, "title": "A"}\n[2]\n'}, {}, "line 2 is not JSON: list"),
        ({"items.jsonl": b'{"item_id": 1, "title": "\xff"}\n'}, {}, "line 1 is not UTF-8"),
        (
            {"items.jsonl": '{"item_id": 1, "title": "A"}\n{"item_id": 2, "title": ["B"]}\n'},
            {},
            "different kinds",
        ),
        (
            {"items.jsonl": json_lines([{"item_id": 1, "title": "A", "category": [["x"], ["y"]]}])},
            {},
            "column category of .* holds .*--column category=",
        ),
        (
            {"items.jsonl": json_lines([{"item_id": [1], "title": "A"}])},
            {},
            r"column item_id of .*items\.jsonl holds .* not one value a row",
        ),
        (
            {
                "items.csv": ITEMS,
                "interactions.csv": USES,
                "relations.jsonl": json_lines([{"item_id": 1, "related_id": [2]}]),
            },
            {},
            r"column related_id of .*relations\.jsonl holds",
        ),
        (
            {"items.jsonl": json_lines([{"item_id": 1.0, "title": "A"}]), "interactions.csv": USES},
            {},
            "No interaction of .* is with one of its items.*'1'.*'1.0'.*--column item_id=",
        ),
        (
            {"items.csv.gz": gzip.compress(("item_id,title\n" + "1,A\n" * 9999).encode())[:-20]},
            {},
            r"items\.csv\.gz cannot be read",
        ),
        ({"items.parquet": b"PAR1 no"}, {}, r"items\.parquet cannot be read"),
        (
            {"items.csv": ITEMS, "interactions.csv": USES, "relations.csv": "item_id,to\n1,2\n"},
            {},
            "no column related_id; it has item_id, to",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": "user_id,item_id,timestamp\nu,1,\nu,2,2\n"},
            {},
            "1 of 2 .* no timestamp",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": "user_id,item_id,timestamp\nu,1,nan\nu,2,2\n"},
            {},
            "1 of 2 .* no timestamp",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": "user_id,item_id,timestamp\nu,1,soon\n"},
            {},
            "neither numbers nor dates.*'soon'",
        ),
        (
            {"items.csv": ITEMS, "interactions.csv": "user_id,item_id,rating\nu,1,good\n"},
            {"min_rating": 3},
            "'good', which is no number",
        ),
        (
            {"ratings.csv": "user,movie\n1,2\n", "movies.csv": "movieId,title,genres\n2,A,B\n"},
            {},
            r"ratings\.csv has no column item_id",
        ),
        ({"u.data": "1\t1\t5\t1\n"}, {}, r"u\.item cannot be read.*whole folder"),
        ({"u.data": "1\t1\t5\t1\n", "u.item": "1|A\n"}, {}, r"u\.item line 1 has 2 fields, not 24"),
        ({"x.inter": "user_id\titem_id\n1\t2\n"}, {}, "'user_id' has no type"),
        ({"x.inter": "user_id:token item_id:token\n1 2\n"}, {}, "is of none of the types token"),
        (
            {"x.inter": "user_id:token\titem_id:token\ttimestamp:float\n1\t2\tx\n"},
            {},
            r"neither numbers nor dates, such as 'x' in .*x\.inter line 2",
        ),
        ({"x.inter": "user_id:token\titem_id:token\n1\t2\n"}, {}, "No item of .* has a title"),
        ({"meta.json": json_lines([META])}, {}, "no file of reviews"),
        ({"meta.json": json_lines([{"title": "T"}]), "r.json": json_lines([REVIEW])}, {}, "without asin"),
        (
            {"meta.json": json_lines([META]), "r.json": '{"asin": "A"}\n'},
            {},
            r"r\.json has no column reviewerID",
        ),
        (
            {"meta.json": json_lines([META]), "r.json": json_lines([REVIEW]) + b"{bad\n"},
            {},
            r"r\.json line 2 is not JSON",
        ),
        ({"meta.json.gz": b"not gzip", "r.json": json_lines([REVIEW])}, {}, r"meta\.json\.gz cannot be read"),
        (
            {"meta.json": json_lines([META]), "r.json.gz": json_lines([REVIEW] * 9999, True)[:-99]},
            {},
            r"r\.json\.gz cannot be read after line",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: Files, options: dict[str, Any], said: str
) -> None:
    source = write_files(tmp_path / "source", files)
    assert run(arguments(source, tmp_path / "data", options)) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"Error: .*{said}.*\n", printed.err)
    assert printed.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_missing_column_names_file_columns_and_flag_and_the_flag_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "source", {"items.csv": "sku,label,long\n1,,One\n2,Two,Second\n"})
    out = tmp_path / "data"
    assert run(arguments(source, out, {})) == 2
    assert capsys.readouterr().err == (
        f"Error: {source / 'items.csv'} has no column item_id; it has sku, label, long. "
        "Say which it is: --column item_id=SOURCE\n"
    )
    assert run(arguments(source, out, {"columns": {"item_id": "sku", "title": "label|long"}})) == 0
    assert [(i.id, i.title) for i in Catalog.open(out).all_items()] == [("1", "One"), ("2", "Two")]


def test_a_column_that_is_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_files(tmp_path / "source", {"items.csv": ITEMS})
    assert run(["data", "import", str(source), "--out", str(tmp_path / "d"), "--column", "title"]) == 2
    assert capsys.readouterr().err.startswith("Error: --column 'title' is not of the form")


def test_places_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_files(tmp_path / "source", {"items.csv": ITEMS})
    assert run(arguments(tmp_path / "nothing", tmp_path / "out", {})) == 2
    assert "nothing is no folder." in capsys.readouterr().err
    assert run(arguments(source, source / "items.csv" / "out", {})) == 2
    assert re.fullmatch(r"Error: .*out cannot be made: .* Choose another --out\.\n", capsys.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("movielens-small", {}, (610, 3650, 90_274, 1846, 0)),
        ("amazon-office-2014", {}, (4905, 2420, 53_258, 0, 3)),
        ("lastfm-2k-audio", {}, (965, 1254, 30_613, 0, 0)),
        ("hm-photos", {}, (0, 2522, 0, 2522, 0)),
        ("amazon-games-2018", {}, (50_335, 16_428, 437_772, 0, 0)),
        # Its sequences were 5-core before they were cut at 50, which leaves some items rarer.
        (
            "amazon-office-2018",
            {"core": 1, "columns": {"title": "title|anchor"}},
            (87_346, 25_986, 680_304, 0, 21_706),
        ),
    ],
)
def test_the_real_folders_give_their_published_counts(
    shared_data: Path, tmp_path: Path, name: str, options: dict[str, Any], counts: tuple[int, ...]
) -> None:
    catalog = import_dataset(shared_data / name, tmp_path / name, **options)
    got = catalog.manifest["counts"]
    assert tuple(got[k] for k in ("users", "items", "interactions")) == counts[:3]
    assert (got["columns"].get("image", 0), got["without_title"]) == counts[3:]
    images = [i.path("image") for i in catalog.all_items() if "image" in i.fields]
    assert all(image and Path(image).is_file() for image in images)
    lengths = catalog.interactions.group_by("user").len()["len"]
    assert catalog.leave_one_out().eval_users.size == (lengths >= 3).sum()
    assert import_dataset(shared_data / name, tmp_path / "b" / name, **options).digest == catalog.digest
