"""Files of a source: found by name, and read whole; an error names the file and, where it can, the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from earec_core.errors import DataError


def frame(rows: Sequence[Mapping[str, Any]], file: Path) -> pl.DataFrame:
    """Rows of a file as a table."""
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise DataError(
            f"A column of {file} has values of different kinds: {reason(error)}.",
            "Give each column one kind.",
        ) from error


def delimited(file: Path, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """A file without header or quotes, in UTF-8 or (the older MovieLens sets) Latin-1."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {reason(error)}.", "Give the whole folder of the data set."
        ) from error
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


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Every object of a file of JSON lines, gzipped or not."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"{type(row).__name__} instead of an object")
                    yield row
    except UnicodeDecodeError:
        raise DataError(f"{file} line {number} is not UTF-8.", "Convert the file to UTF-8.") from None
    except ValueError as error:
        raise DataError(f"{file} line {number} is not JSON: {error}.", "Mend or remove that line.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read after line {number}: {reason(error)}.", "Get the file again."
        ) from error


def reason(error: Exception) -> str:
    """The first sentence of a message; Polars' go on with pages of advice."""
    return str(error).strip().split("\n")[0].rstrip(".")


def file_names(source: Path) -> set[str]:
    """Names of what is in a folder."""
    return {path.name for path in source.iterdir()}


def stem(name: str) -> str:
    """A table's name without its ending; empty for a file that is no csv, jsonl or parquet."""
    for ending in (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return ""


def find(source: Path, wanted: str) -> Path | None:
    """The csv, jsonl or parquet file of that name in a folder, if there is one."""
    return next((path for path in sorted(source.iterdir()) if stem(path.name) == wanted), None)


def one_file(source: Path, wanted: str) -> Path:
    """The same; DataError where there is none."""
    path = find(source, wanted)
    if path is None:
        raise DataError(
            f"{source} has no {wanted}.csv, .jsonl or .parquet.", "Add it, or name the format with --format."
        )
    return path
