"""JSON lines, and the Python literals of Amazon 2014: every object of a file, and objects as a table."""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

from earec_core.catalog.formats.files import (
    MOST_DEPTH,
    check_columns_count,
    check_unzipped,
    raw_lines,
    reason,
)
from earec_core.errors import DataError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_LITERAL = 1 << 20
_MOST_CELLS = 100_000_000
Row = dict[str, Any]


def json_lines(file: Path) -> Iterator[Row]:
    """Every object of a file of JSON lines, gzipped or not, or of Python literals.

    Half an emoji (a lone surrogate, from text cut in the middle) becomes U+FFFD.

    Raises:
        DataError: a line that is neither, with its number; see also `files.raw_lines`.
    """
    literal = False
    for number, line in enumerate(raw_lines(file), 1):
        if line.strip():
            row, literal = _row(line, literal, f"{file} line {number}")
            yield row


def all_rows(file: Path) -> Iterator[Row]:
    """The same, of a file that is read to its end: what would exhaust memory is refused before its first row."""
    try:
        check_unzipped(file)
    except DataError as error:
        if error.__cause__ is None:
            raise
        # Damage is told with its line.
    yield from json_lines(file)


def first_row(file: Path) -> Row | None:
    """The first object of a file; None if the file is empty, or one JSON document over several lines."""
    try:
        return next(json_lines(file), None)
    except DataError:
        if _is_document(file):
            return None
        raise


def _is_document(file: Path) -> bool:
    """Whether a file of less than 1 MiB is JSON as a whole."""
    content = b""
    for line in raw_lines(file):
        content += line
        if len(content) > 1 << 20:
            return False
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _literal(line: str) -> Any:
    """A Python literal's value, without running anything; ValueError for what no JSON could hold."""
    if len(line) > _LONGEST_LITERAL:
        raise ValueError("the line is longer than 1 MiB")
    try:
        with warnings.catch_warnings():
            # Python warns of escapes that it does not know.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(line.strip())
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None
    return _as_json(value)


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _row(line: bytes, literal: bool, where: str) -> tuple[Row, bool]:
    """A line's object, and whether it is a Python literal.

    Args:
        literal: whether the line before is, for what is said of a line that is neither.
    """
    if line.count(b"[") + line.count(b"{") > MOST_DEPTH and _deepest(line) > MOST_DEPTH:
        raise DataError(f"{where} is nested more than {MOST_DEPTH} deep.", "Flatten it or remove that line.")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8.", "Convert the file to UTF-8.") from None
    errors: dict[bool, Exception] = {}
    for as_literal, parse in ((False, json.loads), (True, _literal)):
        try:
            row = parse(text)
        except (ValueError, SyntaxError, RecursionError) as error:
            errors[as_literal] = error
            continue
        if not isinstance(row, dict):
            raise DataError(
                f"{where} is not JSON: {type(row).__name__} instead of an object.",
                "Mend or remove that line.",
            )
        return (_without_surrogates(row) if _SURROGATE.search(line) else row), as_literal
    problem = f"{'a Python literal' if literal else 'JSON'}: {reason(errors[literal]).split(';')[0]}"
    raise DataError(f"{where} is not {problem}.", "Mend or remove that line.")


def _deepest(line: bytes) -> int:
    """How deeply brackets outside of quotes are nested."""
    depth = deepest = 0
    for token in re.findall(rb"\"(?:[^\"\\]|\\.)*\"|[\[\]{}]", line, re.DOTALL):
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(part) for part in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(part) for key, part in value.items()}
    return value


def frame(rows: Sequence[Row], file: Path, needed: Collection[str]) -> pl.DataFrame:
    """Rows of a file as a table.

    A column whose values no table holds together becomes text, each value as JSON; of the columns in `needed`
    only one without lists and objects does. Objects without any field become null.

    Raises:
        DataError: too many columns, or a needed one that mixes lists or objects with texts or numbers.
    """
    kinds, texts = _kinds(rows, file)
    try:
        table = _table(rows, texts)
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        texts |= {name for name in kinds if not _fits(rows, name)}
        table = None
    for name in texts:
        if name in needed and len(kinds[name]) > 1:
            raise DataError(_mixed(rows, name, file), "Give each column one kind.")
    if table is None:
        table = _table(rows, texts)
    if any(map(hollow, table.dtypes)):
        table = _table([{name: _filled(value) for name, value in row.items()} for row in rows], texts)
    return table


def row_line(file: Path, row: int, header: int = 0) -> int:
    """The number, from 1, of the line that a row, from 0, stands in; blank lines are no rows."""
    lines = (number for number, line in enumerate(raw_lines(file), 1) if line.strip())
    return next(itertools.islice(lines, row + header, None), row + header + 1)


def hollow(kind: pl.DataType | DataTypeClass) -> bool:
    """Whether a kind of column has an object without fields in it; Parquet holds none."""
    if isinstance(kind, pl.Struct):
        return not kind.fields or any(hollow(field.dtype) for field in kind.fields)
    return isinstance(kind, pl.List | pl.Array) and hollow(kind.inner)


def _kinds(rows: Sequence[Row], file: Path) -> tuple[dict[str, set[str]], set[str]]:
    """Each column's kinds of value, and the columns that no table can hold as they are."""
    kinds: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                kinds.setdefault(name, set()).add(_kind(value))
                if isinstance(value, dict):
                    keys.setdefault(name, set()).update(value)
            elif name not in kinds:
                kinds[name] = set()
        check_columns_count(len(kinds), file)
    texts = {name for name, found in kinds.items() if len(found) > 1}
    # Objects by id: a table would have a field for each.
    return kinds, texts | {name for name, found in keys.items() if len(found) * len(rows) > _MOST_CELLS}


def _kind(value: Any) -> str:
    return "object" if isinstance(value, dict) else "list" if isinstance(value, list) else "value"


def _table(rows: Sequence[Row], texts: Collection[str]) -> pl.DataFrame:
    if texts:
        rows = [{name: _text(v) if name in texts else v for name, v in row.items()} for row in rows]
    return pl.DataFrame(rows, infer_schema_length=None)


def _fits(rows: Sequence[Row], name: str) -> bool:
    try:
        pl.DataFrame([{name: row.get(name)} for row in rows], infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        return False
    return True


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _filled(part) for name, part in value.items()} or None
    return [_filled(part) for part in value] if isinstance(value, list) else value


def _mixed(rows: Sequence[Row], name: str, file: Path) -> str:
    """What to say of a column that mixes kinds: the first value and the first of another kind."""
    values = [(i, row[name]) for i, row in enumerate(rows) if row.get(name) is not None]
    first, value = values[0]
    other, odd = next(((i, v) for i, v in values if _kind(v) != _kind(value)), values[0])
    return (
        f"{file} line {row_line(file, other)} has values of different kinds: "
        f"its {name} is {shown(odd)}, in line {row_line(file, first)} it is {shown(value)}."
    )


def shown(value: Any) -> str:
    """A value for a sentence, in one line and not too long."""
    return brief(repr(value))


def brief(value: object) -> str:
    """Its text, cut where it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
