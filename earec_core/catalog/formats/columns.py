"""Columns under EAREC's names: what a source calls them, and what its readers give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.delimited import csv_rows, read_csv
from earec_core.catalog.formats.files import (
    check_columns_count,
    check_regular,
    check_size,
    most_bytes,
    reason,
    several,
    whole,
)
from earec_core.catalog.formats.lines import all_rows, brief, frame, row_line
from earec_core.errors import DataError

RELATION_KINDS = ("bought_together", "also_buy", "also_bought", "also_view", "also_viewed")
"""Relation columns, strongest first."""
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
_FREE_ROWS = 1_000_000
_AS_TEXT = ("user_id", "item_id", "title", "description", "category", "brand")


@dataclass(frozen=True)
class Part:
    """A file that some rows of a table come from.

    Attributes:
        file: the file.
        rows: how many rows it gave.
        header: lines before the first row.
    """

    file: Path
    rows: int
    header: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a source.

    Attributes:
        rows: in the source's order.
        parts: the files that the rows come from, in the same order; empty where a reader does not say.
    """

    rows: pl.DataFrame
    parts: tuple[Part, ...] = ()

    def place(self, row: int) -> str:
        """File and line that a row, from 0, comes from; its number where no file is known."""
        before = 0
        for part in self.parts:
            if row < before + part.rows:
                return _place(part, row - before)
            before += part.rows
        return f"row {row + 1:,}"


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        items: `item_id` and whatever describes an item; text is not cleaned yet.
        interactions: `user_id`, `item_id`, and perhaps `timestamp` and `rating`.
        relations: `item_id`, `related_id`, `kind`; None where it gives none.
        base: the folder that relative file paths are relative to.
    """

    items: Table
    interactions: Table
    relations: Table | None
    base: Path

    @property
    def files(self) -> list[Path]:
        """Every file that was read."""
        tables = (self.items, self.interactions, self.relations or self.items)
        return list(dict.fromkeys(part.file for table in tables for part in table.parts))


NO_INTERACTIONS = Table(
    pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})
)


def mapped(source: Table, columns: Mapping[str, str], needed: Sequence[str]) -> Table:
    """The table under EAREC's column names: as `columns` says, else by name or synonym."""
    table, file = source.rows, source.parts[0].file
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
                f"{file} has no column {name}; it has {several(have)}.",
                f"Say which it is: --column {name}=SOURCE",
            )
    check_scalar(table, (*needed, "timestamp") if "user_id" in needed else needed, file)
    return replace(source, rows=table)


def check_scalar(table: pl.DataFrame, names: Sequence[str], file: Path | str) -> None:
    """Raises DataError for a column that holds more than one value a row."""
    for name in names:
        kind = table.schema.get(name)
        if kind is not None and (kind.is_nested() or kind in (pl.Binary, pl.Duration)):
            raise DataError(
                f"The column {name} of {file} holds {brief(kind)}, not one value a row.",
                "Give it one value a row.",
            )


def named(table: pl.DataFrame, column: str) -> pl.Expr:
    """A column of ids as text; null where it is blank, or no number in a column of numbers."""
    ids = pl.col(column)
    text = (ids.fill_nan(None) if table.schema[column].is_float() else ids).cast(pl.String)
    return pl.when(text.str.strip_chars() != "").then(text).alias(column)


def check_columns(columns: Mapping[str, str], source: Source) -> None:
    """Refuse a `--column` that fits no table of the source."""
    have = [*source.items.rows.columns, *source.interactions.rows.columns]
    for ours, theirs in columns.items():
        missing = [part for part in theirs.split("|") if part not in have]
        if missing:
            raise DataError(
                f"No file of {source.base} has a column {missing[0]!r}, named for {ours}; "
                f"there are {several(dict.fromkeys(have))}.",
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


def read_table(file: Path, columns: Mapping[str, str]) -> Table:
    """A csv, jsonl or parquet file. Ids and texts stay as they are written: "007" is not 7."""
    name = file.name.removesuffix(".gz")
    texts = [*_AS_TEXT, *RELATED_NAMES]
    for ours in _AS_TEXT:
        theirs = (*_SYNONYMS.get(ours, ()), columns.get(ours, ours))
        texts += [part for name in theirs for part in name.split("|")]
    if name.endswith(".parquet"):
        table = _parquet(file, texts)
    elif name.endswith(".jsonl"):
        table = frame(list(all_rows(file)), file, (*texts, "timestamp"))
    else:
        table = read_csv(file, texts)
    return Table(table, (Part(file, table.height, int(name.endswith(".csv"))),))


def _parquet(file: Path, texts: Sequence[str]) -> pl.DataFrame:
    """A Parquet file; texts that its writer marked as bytes, and arrays, as texts and lists."""
    check_regular(file)
    try:
        with file.open("rb") as content:
            ends = content.read(4)
        if ends != b"PAR1":
            raise DataError(f"{file} cannot be read: it is no Parquet file.", "Get the file again.")
        scan = pl.scan_parquet(file, glob=False)
        schema = scan.collect_schema()
        check_columns_count(len(schema), file)
        _check_rows(file, int(scan.select(pl.len()).collect().item()))
        arrays = [
            pl.col(name).arr.to_list()
            for name, kind in schema.items()
            if name in texts and isinstance(kind, pl.Array)
        ]
        marked = [pl.col(n).cast(pl.String) for n, kind in schema.items() if n in texts and kind == pl.Binary]
        table = scan.with_columns(arrays + marked).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Mend or convert the file.") from error
    sizes = (int(cells.str.len_bytes().sum()) for cells in table.iter_columns() if cells.dtype == pl.String)
    check_size(file, sum(sizes), most_bytes(file))
    return table


def _check_rows(file: Path, rows: int) -> None:
    """Raises DataError for more rows than the file's bits, which no table of ids has."""
    if rows > _FREE_ROWS + 8 * file.stat().st_size:
        raise DataError(
            f"{file} says that it has {rows:,} rows, in {file.stat().st_size:,} bytes.", "Get the file again."
        )


def _place(part: Part, row: int) -> str:
    name = part.file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return f"{part.file} row {row + 1:,}"
    if name.endswith(".csv"):
        lines = (line for line, _ in csv_rows(part.file, whole(part.file)))
        line = next(itertools.islice(lines, row + part.header, None), row + 1 + part.header)
    else:
        line = row_line(part.file, row, part.header)
    return f"{part.file} line {line}"
