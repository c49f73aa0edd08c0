"""Items, perhaps interactions and relations, as csv, jsonl (.gz) or parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import RELATED_NAMES, Source, check_scalar, mapped, read_table
from earec_core.catalog.formats.files import file_names, find, one_file, stem
from earec_core.errors import DataError


def detect(source: Path) -> bool:
    """Whether the folder holds items or interactions under these names."""
    return any(stem(name) in ("items", "interactions") for name in file_names(source))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    file = one_file(source, "items")
    items = mapped(read_table(file, columns), columns, file, ("item_id",))
    interactions_file, relations_file = find(source, "interactions"), find(source, "relations")
    if interactions_file is None:
        empty = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
        return Source(items, pl.DataFrame(schema=empty), None, source)
    table = read_table(interactions_file, columns)
    interactions = mapped(table, columns, interactions_file, ("user_id", "item_id"))
    relations = None if relations_file is None else _relations(relations_file)
    return Source(items, interactions, relations, source)


def _relations(file: Path) -> pl.DataFrame:
    table = mapped(read_table(file, {}), {}, file, ("item_id",))
    other = next((name for name in RELATED_NAMES if name in table.columns), None)
    if other is None:
        raise DataError(
            f"{file} has no column related_id; it has {', '.join(table.columns)}.",
            "Name the related item's column related_id.",
        )
    check_scalar(table, (other, "kind"), file)
    kind = pl.col("kind") if "kind" in table.columns else pl.lit("related")
    return table.select("item_id", pl.col(other).alias("related_id"), kind.alias("kind"))
