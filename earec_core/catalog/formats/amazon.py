"""Amazon reviews and metadata of 2018 and 2023, JSON lines, gzipped or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from earec_core.catalog.formats.columns import RELATION_KINDS, Source, mapped
from earec_core.catalog.formats.files import file_names, frame, json_lines, reason
from earec_core.errors import DataError

_IMAGE_KEYS = ("image", "images", "imageURLHighRes", "imageURL", "imUrl")
_HTML = ("similar_item", "tech1", "tech2")
_LEFT_OUT = {*RELATION_KINDS, *_IMAGE_KEYS, *_HTML, "related", "asin", "parent_asin", "categories"}
"""Relations, which have a table of their own; what another column holds already; pieces of HTML."""


def detect_2018(source: Path) -> bool:
    """Whether the folder holds metadata."""
    return bool(_metadata(source))


def detect_2023(source: Path) -> bool:
    """Whether the folder holds metadata whose items have parents."""
    files = _metadata(source)
    return bool(files) and "parent_asin" in next(json_lines(source / files[0]), {})


def _metadata(source: Path) -> list[str]:
    return sorted(name for name in file_names(source) if "meta" in name.lower() and ".json" in name)


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    meta_file = _containing(source, "meta", "")
    review_file = _containing(source, "", "meta")
    items, related = [], []
    for row in json_lines(meta_file):
        item = row.get("parent_asin") or row.get("asin")
        if item is None:
            raise DataError(f"{meta_file} has a row without asin.", "Give the metadata file of the data set.")
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
        given = {**(row.get("related") or {}), **row}
        more = {
            k: _joined(v, ", ")
            for k, v in row.items()
            if k not in fields and k not in _LEFT_OUT and _plain(v)
        }
        items.append(fields | more)
        for kind in RELATION_KINDS:
            related += [(item, other, kind) for other in given.get(kind) or () if isinstance(other, str)]
    inter = _reviews(review_file)
    relations = pl.DataFrame(
        related, schema=dict.fromkeys(("item_id", "related_id", "kind"), pl.String), orient="row"
    )
    table = frame(items, meta_file)
    return Source(mapped(table, columns, meta_file, ("item_id",)), inter, relations, source)


def _reviews(file: Path) -> pl.DataFrame:
    """Reviews of either year, read by Polars: full files have tens of millions of them."""
    schema = {
        **dict.fromkeys(("reviewerID", "user_id", "asin", "parent_asin"), pl.String),
        **dict.fromkeys(("overall", "rating"), pl.Float64),
        **dict.fromkeys(("unixReviewTime", "timestamp"), pl.Int64),
    }
    try:
        table = pl.read_ndjson(file, schema=schema)
    except (pl.exceptions.PolarsError, OSError) as error:
        for _ in json_lines(file):  # Polars names no line; this finds it.
            pass
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Get the file again.") from error
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


def _containing(source: Path, wanted: str, unwanted: str) -> Path:
    for path in sorted(source.iterdir()):
        name = path.name.lower()
        if ".json" in name and wanted in name and not (unwanted and unwanted in name):
            return path
    content = "metadata (meta_*.json.gz)" if wanted else "reviews (*.json.gz)"
    raise DataError(f"{source} has no file of {content}.", "Put reviews and metadata into one folder.")


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
