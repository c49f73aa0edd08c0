"""Amazon reviews and metadata of 2014, 2018 and 2023, JSON lines (2014 also Python literals), gzipped or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from earec_core.catalog.formats.amazon_files import chosen, is_metadata
from earec_core.catalog.formats.columns import RELATION_KINDS, Part, Source, Table, mapped
from earec_core.catalog.formats.files import check_regular, file_names, reason, whole
from earec_core.catalog.formats.lines import Row, all_rows, frame, json_lines
from earec_core.errors import DataError

_IMAGE_KEYS = ("image", "images", "imageURLHighRes", "imageURL", "imUrl")
_HTML = ("similar_item", "tech1", "tech2")
_LEFT_OUT = {*RELATION_KINDS, *_IMAGE_KEYS, *_HTML, "related", "asin", "parent_asin", "categories"}
"""Relations, which have a table of their own; what another column holds already; pieces of HTML."""
_TEXT = ("item_id", "title", "description", "category", "brand")
_IDS = ("reviewerID", "user_id", "asin", "parent_asin")
_NUMBERS = ("overall", "rating", "unixReviewTime", "timestamp")
_BATCH = 100_000
Related = list[tuple[str, str, str]]


def detect_2018(source: Path) -> bool:
    """Whether the folder holds metadata."""
    return any(map(is_metadata, file_names(source)))


def detect_2023(source: Path) -> bool:
    """Whether the folder holds metadata whose items have parents."""
    return detect_2018(source) and chosen(source).parents


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    files = chosen(source)
    related: Related = []
    items = [_items(file, related) for file in files.metadata]
    reviews = [_reviews(file) for file in files.reviews]
    relations = pl.DataFrame(
        related, schema=dict.fromkeys(("item_id", "related_id", "kind"), pl.String), orient="row"
    )
    return Source(
        mapped(_together(files.metadata, items), columns, ("item_id",)),
        _together(files.reviews, reviews),
        Table(relations),
        source,
    )


def _together(files: Sequence[Path], tables: Sequence[pl.DataFrame]) -> Table:
    parts = tuple(Part(file, table.height) for file, table in zip(files, tables, strict=True))
    try:
        rows = pl.concat(tables, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{' and '.join(map(str, files))} have columns of different kinds: {reason(error)}.",
            "Import one of them at a time.",
        ) from error
    return Table(rows, parts)


def _items(file: Path, related: Related) -> pl.DataFrame:
    """The items of a file of metadata; what is related to them is added to the list."""
    items = []
    for row in all_rows(file):
        item = row.get("parent_asin") or row.get("asin")
        if item is None:
            raise DataError(f"{file} has a row without asin.", "Give the metadata file of the data set.")
        title = row.get("title")
        category = (
            row.get("category") or row.get("categories") or row.get("main_cat") or row.get("main_category")
        )
        fields = {
            "item_id": item,
            # Some pages of 2018 were not parsed: their titles are the page's scripts.
            "title": None if "getTime" in str(title) else title,
            "description": _joined(row.get("description"), " "),
            "category": _joined(_flat(category), ", "),
            "brand": row.get("brand") or row.get("store"),
            "image": _first_image(row),
        }
        more = {
            k: _joined(v, ", ")
            for k, v in row.items()
            if k not in fields and k not in _LEFT_OUT and _plain(v)
        }
        items.append(fields | more)
        related += _related(item, row)
    return frame(items, file, _TEXT)


def _related(item: Any, row: Row) -> Iterator[tuple[str, str, str]]:
    within = row.get("related")
    given = {**(within if isinstance(within, dict) else {}), **row}
    for kind in RELATION_KINDS:
        others = given.get(kind)
        if isinstance(others, list):
            yield from ((str(item), other, kind) for other in others if isinstance(other, str))


def _reviews(file: Path) -> pl.DataFrame:
    """Reviews of any year, read by Polars where it can: full files have tens of millions of them."""
    kinds = {**dict.fromkeys(_IDS, pl.String), **dict.fromkeys(_NUMBERS, pl.Float64)}
    check_regular(file)
    try:
        table = pl.read_ndjson(whole(file) if file.suffix == ".gz" else file, schema=kinds)
    except (DataError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        table = _reviews_by_line(file)
    table = table.select(
        pl.coalesce("reviewerID", "user_id").alias("user_id"),
        pl.coalesce("parent_asin", "asin").alias("item_id"),
        pl.coalesce("overall", "rating").alias("rating"),
        pl.coalesce("unixReviewTime", "timestamp").alias("timestamp"),
    )
    for column, names in (("user_id", "reviewerID or user_id"), ("item_id", "asin or parent_asin")):
        if table.height and table[column].null_count() == table.height:
            raise DataError(f"{file} has no column {names}.", "Give the reviews of the data set.")
    return table


def _reviews_by_line(file: Path) -> pl.DataFrame:
    """The columns of reviews that Polars does not read: ratings as text, Python literals, numbers of 80 digits."""
    names = (*_IDS, *_NUMBERS)
    rows, batches = json_lines(file), [pl.DataFrame(schema=dict.fromkeys(names, pl.String))]
    while batch := [tuple(map(row.get, names)) for row in itertools.islice(rows, _BATCH)]:
        columns = zip(names, zip(*batch, strict=True), strict=True)
        texts = {name: [None if v is None else str(v) for v in values] for name, values in columns}
        batches.append(pl.DataFrame(texts, schema=dict.fromkeys(names, pl.String)))
    return pl.concat(batches)


def _flat(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return value[0]
    return value


def _plain(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str | int | float) for part in parts)


def _joined(value: Any, separator: str) -> str | None:
    if isinstance(value, list):
        return separator.join(str(part) for part in value if part) or None
    return str(value) if value else None


def _first_image(row: Mapping[str, Any]) -> str | None:
    for key in _IMAGE_KEYS:
        value = row.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("large") or value.get("thumb")
        if isinstance(value, str) and value:
            return value
    return None
