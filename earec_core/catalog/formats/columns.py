"""Columns under EAREC's names: what a source calls them, and what its readers give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.files import frame, json_lines, reason
from earec_core.errors import DataError

RELATION_KINDS = ("bought_together", "also_buy", "also_bought", "also_view", "also_viewed")
"""Relation columns, strongest first."""
_USE = ("timestamp", "rating")
RELATED_NAMES = ("related_id", "related_item_id", "related")
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "item_id": ("itemId", "movieId", "asin", "parent_asin", "id"),
    "user_id": ("userId", "user", "reviewerID"),
    "timestamp": ("time", "date", "position", "unixReviewTime"),
    "title": ("name",),
    "description": ("text", "abstract|overview|plot"),
    "category": ("genres", "categories", "product_type"),
}
"""Where a column of EAREC's name is missing, these are taken; `a|b` means the first that is not empty."""
_AS_TEXT = ("user_id", "item_id", "title", "description", "category", "brand")


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        items: `item_id` and whatever describes an item; text is not cleaned yet.
        interactions: `user_id`, `item_id`, `timestamp` and perhaps `rating`, in the source's order.
        relations: `item_id`, `related_id`, `kind`, in the source's order; None where it gives none.
        base: the folder that relative file paths are relative to.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    relations: pl.DataFrame | None
    base: Path


def mapped(
    table: pl.DataFrame, columns: Mapping[str, str], file: Path, needed: Sequence[str]
) -> pl.DataFrame:
    """The table under EAREC's column names: as `columns` says, else by name or synonym."""
    have = table.columns
    if not have:
        raise DataError(f"{file} is empty.", "Check the file.")
    renamed = []
    for ours, theirs in columns.items():
        parts = theirs.split("|")
        if all(part in have for part in parts):
            renamed.append(_coalesced(table, parts).alias(ours))
    done = {expression.meta.output_name() for expression in renamed}
    for ours, synonyms in _SYNONYMS.items():
        if ours in done or ours in have:
            continue
        for name in synonyms:
            parts = [part for part in name.split("|") if part in have]
            if parts:
                renamed.append(_coalesced(table, parts).alias(ours))
                break
    table = table.with_columns(renamed)
    for name in needed:
        if name not in table.columns:
            raise DataError(
                f"{file} has no column {name}; it has {', '.join(have)}.",
                f"Say which it is: --column {name}=SOURCE",
            )
    check_scalar(table, (*needed, *_USE) if "user_id" in needed else needed, file)
    return table


def check_scalar(table: pl.DataFrame, names: Sequence[str], file: Path) -> None:
    """Raises DataError for a column that holds more than one value a row."""
    for name in names:
        kind = table.schema.get(name)
        if kind is not None and kind.is_nested():
            raise DataError(
                f"The column {name} of {file} holds {kind}, not one value a row.", "Give it one value a row."
            )


def check_columns(columns: Mapping[str, str], source: Source) -> None:
    """Refuse a `--column` that fits no table of the source."""
    have = [*source.items.columns, *source.interactions.columns]
    for ours, theirs in columns.items():
        missing = [part for part in theirs.split("|") if part not in have]
        if missing:
            raise DataError(
                f"No file of {source.base} has a column {missing[0]!r}, named for {ours}; "
                f"there are {', '.join(dict.fromkeys(have))}.",
                f"Mend --column {ours}={theirs}.",
            )


def _coalesced(table: pl.DataFrame, parts: Sequence[str]) -> pl.Expr:
    if len(parts) == 1:
        return pl.col(parts[0])
    texts = [_text(table, part) for part in parts]
    return pl.coalesce([pl.when(text.str.strip_chars() != "").then(text) for text in texts])


def _text(table: pl.DataFrame, name: str) -> pl.Expr:
    column = pl.col(name)
    if isinstance(table.schema[name], pl.List):
        return column.cast(pl.List(pl.String)).list.join(", ")
    return column.cast(pl.String)


def read_table(file: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """A csv, jsonl or parquet file. Ids and texts stay as they are written: "007" is not 7."""
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return pl.read_parquet(file)
        if name.endswith(".jsonl"):
            return frame(list(json_lines(file)), file)
        names = [*_AS_TEXT, *RELATED_NAMES]
        for ours in _AS_TEXT:
            theirs = (*_SYNONYMS.get(ours, ()), columns.get(ours, ""))
            names += [part for name in theirs for part in name.split("|")]
        have = pl.read_csv(file, n_rows=0).columns
        texts = dict.fromkeys((n for n in have if n in names), pl.String)
        return pl.read_csv(file, infer_schema_length=None, schema_overrides=texts)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Mend or convert the file.") from error
