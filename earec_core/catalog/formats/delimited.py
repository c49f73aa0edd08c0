"""Tables of delimited text: CSV as pandas reads it, and files without header or quotes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from earec_core.catalog.formats.files import LONGEST_LINE, check_columns_count, decoded, reason, whole
from earec_core.errors import DataError

_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n]*+)'
_WELL_FORMED = re.compile(rb"(?:" + _FIELD + rb"(?:,|\r?\n))*+" + _FIELD)
_FIRST = 10_000
"""Rows."""
_END = "\x00end of the file\x00"


def read_csv(file: Path, texts: Collection[str]) -> pl.DataFrame:
    """A CSV file; blank lines are no rows, and a quote within a field without quotes is a letter.

    A carriage return ends a line, as a line feed and both together do.

    Args:
        texts: columns that stay as they are written; of the others the kind follows from all values.

    Raises:
        DataError: damaged, not UTF-8, a quote that is never closed, rows of different lengths.
    """
    content = whole(file)
    if (b'"' in content or b"\r" in content) and not _WELL_FORMED.fullmatch(content):
        content = _quoted(file, content)
    try:
        return _parsed(content, file, texts)
    except pl.exceptions.PolarsError as error:
        try:
            # Polars names no line; this finds it, or reads what Polars alone does not.
            return _parsed(_quoted(file, content), file, texts, infer=False)
        except pl.exceptions.PolarsError:
            raise DataError(
                f"{file} cannot be read: {reason(error)}.", "Mend or convert the file."
            ) from error


def _parsed(content: bytes, file: Path, texts: Collection[str], infer: bool = True) -> pl.DataFrame:
    have = pl.read_csv(content, n_rows=0).columns
    check_columns_count(len(have), file)
    if infer:
        table = _inferred(content, dict.fromkeys((name for name in have if name in texts), pl.String))
    else:
        table = pl.read_csv(content, infer_schema=False)
        table = table.with_columns(_numbers(column) for column in table if column.name not in texts)
    if any(column.dtype != pl.String and not column.null_count() for column in table.iter_columns()):
        return table
    return table.filter(pl.any_horizontal(_says(column) for column in table.iter_columns()))


def _inferred(content: bytes, kinds: Mapping[str, Any]) -> pl.DataFrame:
    """A table whose other columns have the kind that all their values have.

    Looking at all of them takes ten times as long as reading them. So the first ones say the kind, unless a later
    one has another, or they are texts, which a column of numbers whose first cells are empty looks like.
    """
    try:
        table = pl.read_csv(content, infer_schema_length=_FIRST, schema_overrides=kinds)
    except pl.exceptions.PolarsError:
        table = None
    if table is None or any(kind == pl.String and name not in kinds for name, kind in table.schema.items()):
        table = pl.read_csv(content, infer_schema_length=None, schema_overrides=kinds)
    return table


def _says(column: pl.Series) -> pl.Expr:
    """Whether there is something in a column's cells."""
    cell = pl.col(column.name)
    return (
        (cell.str.strip_chars() != "").fill_null(False) if column.dtype == pl.String else cell.is_not_null()
    )


def _numbers(column: pl.Series) -> pl.Series:
    """Texts as whole numbers or as fractions if all are, else as they are; also numbers of more than 128 bits."""
    for kind in (pl.Int64, pl.Float64):
        numbers = column.cast(kind, strict=False)
        if numbers.null_count() == column.null_count():
            return numbers
    return column


def csv_rows(file: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """The rows of CSV that are not blank, header first, each with the number of its last line."""
    before = csv.field_size_limit(LONGEST_LINE)
    text = decoded(content, file)
    # A row of its own at the end tells whether the last quote was closed.
    reader = csv.reader(io.StringIO(f"{text}\n{_END}", newline=""))
    start = 1
    try:
        for row in reader:
            if row and row[-1].endswith(_END):
                if row != [_END]:
                    raise DataError(
                        f"{file} line {start}: a quote is opened and never closed.", "Close or remove it."
                    )
                return
            if any(map(str.strip, row)):
                yield reader.line_num, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file} line {reader.line_num} cannot be read: {error}.", "Mend that line."
        ) from None
    finally:
        csv.field_size_limit(before)


def _quoted(file: Path, content: bytes) -> bytes:
    """The same table with quotes where they belong and all rows of one length."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    width = 0
    for line, row in csv_rows(file, content):
        width = width or len(row)
        if len(row) > width:
            raise DataError(f"{file} line {line} has {len(row)} fields, not {width}.", "Mend that line.")
        writer.writerow(row + [""] * (width - len(row)))
    return out.getvalue().encode()


def unquoted(file: Path, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """A file without header or quotes, in UTF-8 or (the older MovieLens sets) Latin-1."""
    content = whole(file)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # By "\n" alone: str.splitlines() also splits at U+0085, which Latin-1 texts contain.
    lines = pl.DataFrame({"line": text.split("\n")}, schema={"line": pl.String}).with_row_index("number", 1)
    fields = pl.col("line").str.strip_chars_end("\r").str.split(separator)
    rows = lines.filter(pl.col("line").str.strip_chars() != "").with_columns(fields)
    wrong = rows.filter(pl.col("line").list.len() != len(names))
    if wrong.height:
        number, row = wrong.row(0)
        raise DataError(f"{file} line {number} has {len(row)} fields, not {len(names)}.", "Mend that line.")
    return rows.select(pl.col("line").list.get(i).alias(name) for i, name in enumerate(names))
