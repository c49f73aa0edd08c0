"""The small inputs of ../shared/cases: each does what its README says is right."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earec_core.catalog import Catalog
from earec_core.cli import run

Import = Callable[..., Catalog]


@pytest.fixture
def imported(cases: Path, tmp_path: Path) -> Import:
    """Import a case by the command line, with `--core 1`."""

    def make(case: str, *options: str) -> Catalog:
        out = tmp_path / "data"
        assert run(["data", "import", str(cases / case), "--out", str(out), "--core=1", *options]) == 0
        return Catalog.open(out)

    return make


def refused(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What is said of a case that is not imported; nothing is left."""
    assert run(["data", "import", str(folder), "--out", str(out), "--core=1", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert not list(out.parent.iterdir())
    return said.err


def counts(catalog: Catalog) -> tuple[int, int, int]:
    numbers = catalog.manifest["counts"]
    return numbers["users"], numbers["items"], numbers["interactions"]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_amazon_2014_is_read_with_titles_pictures_and_relations(imported: Import) -> None:
    catalog = imported("a14")
    assert counts(catalog) == (6, 6, 36)
    ids = [f"B00000000{n}" for n in range(6)]
    assert [(i.id, i.title) for i in catalog.all_items()] == [(id_, f"Pen {n}") for n, id_ in enumerate(ids)]
    assert {i.fields["description"] for i in catalog.all_items()} == {'It\'s a "pen"'}
    assert {i.path("image") for i in catalog.all_items()} == {"http://x/y.jpg"}
    assert [i.relations for i in catalog.all_items()] == [((n + 1) % 6,) for n in range(6)]
    assert set(catalog.relations["kind"]) == {"also_bought"}


def test_two_categories_in_one_folder_are_both_read(
    imported: Import, cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = imported("a18two")
    both = [rows(cases / "a18two" / f"meta_{name}.json") for name in ("Books", "Games")]
    assert catalog.items["item_id"].to_list() == [row["asin"] for part in both for row in part]
    uses = [rows(cases / "a18two" / f"{name}_5.json") for name in ("Books", "Games")]
    assert catalog.interactions.height == sum(map(len, uses)) == 72
    files = ["meta_Books.json", "meta_Games.json", "Books_5.json", "Games_5.json"]
    assert catalog.manifest["files"] == {"read": files, "left": []}
    assert f"Read {', '.join(files)}.\n" in capsys.readouterr().err


def test_a_file_that_is_no_data_is_left_out_and_named(
    imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = imported("a18extra")
    assert counts(catalog) == (6, 6, 36)
    assert catalog.manifest["files"]["left"] == ["Dataset_infos.json"]
    assert "Left out Dataset_infos.json.\n" in capsys.readouterr().err


def test_what_another_system_writes_beside_the_data_is_ignored(imported: Import) -> None:
    catalog = imported("a18mac")
    assert counts(catalog) == (6, 6, 36)
    assert catalog.manifest["files"] == {"read": ["meta_X.jsonl", "X.jsonl"], "left": []}


@pytest.mark.parametrize("case", ["a18strrating", "a23floattime"])
def test_numbers_as_text_and_times_as_floats_are_read(imported: Import, cases: Path, case: str) -> None:
    catalog = imported(case, "--min-rating=5")
    reviews = rows(cases / case / "X.jsonl")
    seconds = [float(row.get("unixReviewTime", row.get("timestamp"))) for row in reviews]
    assert all(float(row.get("overall", row.get("rating"))) == 5 for row in reviews)
    assert sorted(catalog.interactions["timestamp"]) == sorted(seconds)


def test_half_an_emoji_is_replaced_and_the_item_kept(imported: Import) -> None:
    titles = [item.title for item in imported("a18surrogate_title").all_items()]
    assert titles == ["Pen 0", "Pen 1", "Pen 2", "Pen \ufffd", "Pen 4", "Pen 5"]


def test_all_parts_of_a_split_are_read(imported: Import) -> None:
    catalog = imported("rb_split")
    assert counts(catalog) == (6, 6, 36)
    assert catalog.sequences().of(0).tolist() == list(range(6))
    assert catalog.manifest["files"]["read"] == ["x.item", "x.train.inter", "x.valid.inter", "x.test.inter"]


def test_a_dash_for_a_price_is_no_price(imported: Import) -> None:
    prices = [item.fields.get("price") for item in imported("rb_dash").all_items()]
    assert prices == [12.5, 12.5, None, 12.5, 12.5, 12.5]


def test_spaces_between_numbers_do_not_count(imported: Import) -> None:
    vectors = [item.fields.get("vec") for item in imported("rb_emptyseq").all_items()]
    assert vectors == [[0.1, 0.2]] * 2 + [None] + [[0.1, 0.2]] * 3


def test_a_quote_within_a_field_is_a_letter(imported: Import, cases: Path) -> None:
    with (cases / "h_quote1" / "items.csv").open(newline="") as file:
        wanted = [(row["item_id"], row["title"]) for row in csv.DictReader(file)]
    assert ("7", '12" ruler 7') in wanted
    assert [(i.id, i.title) for i in imported("h_quote1").all_items()] == wanted


def test_utf_16_is_called_by_its_name(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "items.csv is UTF-16, not UTF-8." in refused(cases / "g_utf16", tmp_path / "d", capsys)


def test_a_field_that_is_always_empty_is_left_out(imported: Import) -> None:
    catalog = imported("h_emptydict")
    assert counts(catalog) == (6, 6, 36)
    assert catalog.items.columns == ["item_id", "title"]


@pytest.mark.parametrize(("case", "field"), [("h_imgbytes", "image"), ("h_hfimage_only", "photo")])
def test_pictures_in_parquet_are_read_by_vision(imported: Import, case: str, field: str) -> None:
    from PIL import Image

    from earec_core.modality import Context
    from earec_core.modality.create import create

    catalog = imported(case)
    vision = create("vision", {"field": field}, Context("c"))
    for item in catalog.all_items():
        value = item.fields[field]
        content = value["bytes"] if isinstance(value, dict) else value
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        raw = vision.read(item)
        # Each picture is of one colour, which resizing leaves as it is.
        assert len(picture.getcolors()) == 1
        assert np.unique(raw.reshape(-1, 3), axis=0).tolist() == [list(picture.getpixel((0, 0)))]
        assert vision.describe(item).startswith("data:image/jpeg;base64,")


def test_an_empty_id_is_refused_with_its_line(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(cases / "emptyid", tmp_path / "d", capsys)
    blank = [not row["item_id"].strip() for row in rows(cases / "emptyid" / "items.jsonl")]
    assert f"{sum(blank)} of {len(blank)} items have no item_id" in said
    assert f"items.jsonl line {blank.index(True) + 1}." in said


def test_titles_that_spell_markers_stay_as_they_are(imported: Import, cases: Path) -> None:
    wanted = [" ".join(row["title"].split()) for row in rows(cases / "special" / "items.jsonl")]
    assert [item.title for item in imported("special").all_items()] == wanted


def test_titles_of_dots_count_as_without_anchor(
    imported: Import, tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from earec_core.config import PromptConfig
    from earec_core.llm.prompts import PromptBuilder

    catalog = imported("dots")
    assert {item.title for item in catalog.all_items()} == {"..."}
    builder = PromptBuilder(PromptConfig(), AutoTokenizer.from_pretrained(tiny_llm), "x")
    assert [builder.anchor(item) for item in catalog.all_items()] == [None] * 20
    capsys.readouterr()
    argv = ["align", "--modality", "text", "--data", str(catalog.path), "--backbone", str(tiny_llm)]
    assert run([*argv, "--registry", str(tmp_path / "registry")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Error: No item of data has both")
