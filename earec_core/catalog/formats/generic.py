"""Items, perhaps interactions and relations, as csv, jsonl (.gz) or parquet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import (
    NO_INTERACTIONS,
    RELATED_NAMES,
    Source,
    Table,
    check_scalar,
    mapped,
    read_table,
)
from earec_core.catalog.formats.files import file_names, find, one_file, several, stem
from earec_core.errors import DataError


def detect(source: Path) -> bool:
    """Whether the folder holds items or interactions under these names."""
    return any(stem(name) in ("items", "interactions") for name in file_names(source))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    items = mapped(read_table(one_file(source, "items"), columns), columns, ("item_id",))
    interactions_file, relations_file = find(source, "interactions"), find(source, "relations")
    if interactions_file is None:
        return Source(items, NO_INTERACTIONS, None, source)
    interactions = mapped(read_table(interactions_file, columns), columns, ("user_id", "item_id"))
    return Source(items, interactions, None if relations_file is None else _relations(relations_file), source)


def _relations(file: Path) -> Table:
    source = mapped(read_table(file, {}), {}, ("item_id",))
    table = source.rows
    other = next((name for name in RELATED_NAMES if name in table.columns), None)
    if other is None:
        raise DataError(
            f"{file} has no column related_id; it has {several(table.columns)}.",
            "Name the related item's column related_id.",
        )
    check_scalar(table, (other, "kind"), file)
    kind = pl.col("kind") if "kind" in table.columns else pl.lit("related")
    return replace(
        source, rows=table.select("item_id", pl.col(other).alias("related_id"), kind.alias("kind"))
    )
