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
    found = find(source, "interactions")
    if found is None:
        empty = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
        return Source(items, pl.DataFrame(schema=empty), None, source)
    inter = mapped(read_table(found, columns), columns, found, ("user_id", "item_id"))
    related = find(source, "relations")
    if related is None:
        return Source(items, inter, None, source)
    table = mapped(read_table(related, {}), {}, related, ("item_id",))
    other = next((c for c in RELATED_NAMES if c in table.columns), None)
    if other is None:
        raise DataError(
            f"{related} has no column related_id; it has {', '.join(table.columns)}.",
            "Name the related item's column related_id.",
        )
    check_scalar(table, (other, "kind"), related)
    kind = pl.col("kind") if "kind" in table.columns else pl.lit("related")
    return Source(
        items, inter, table.select("item_id", pl.col(other).alias("related_id"), kind.alias("kind")), source
    )
