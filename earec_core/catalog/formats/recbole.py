"""RecBole's atomic files: *.inter and *.item, tab-separated with typed headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import Part, Source, Table, mapped
from earec_core.catalog.formats.files import check_columns_count, decoded, file_names, reason, several, whole
from earec_core.catalog.formats.lines import row_line
from earec_core.errors import DataError

_PARTS = ("train", "valid", "validation", "dev", "test")
"""The parts of interactions that were split before, in the order in which they are read."""

_KINDS = ("token", "token_seq", "float", "float_seq")


def detect(source: Path) -> bool:
    """Whether the folder holds interactions."""
    return any(name.endswith(".inter") for name in file_names(source))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    dataset, parts = _interactions(source)
    item_file = _items(source, dataset)
    kept = {"timestamp", "rating", *(part for theirs in columns.values() for part in theirs.split("|"))}
    tables = [_atomic(file, kept) for file in parts]
    for file, table in zip(parts, tables, strict=True):
        if table.columns != tables[0].columns:
            raise DataError(
                f"{file} has the columns {several(table.columns)}, {parts[0].name} has "
                f"{several(tables[0].columns)}.",
                "Give all parts the same columns.",
            )
    rows = pl.concat(tables, how="vertical_relaxed")
    files = tuple(Part(file, table.height, 1) for file, table in zip(parts, tables, strict=True))
    interactions = mapped(Table(rows, files), columns, ("user_id", "item_id"))
    if item_file is None:
        return Source(Table(pl.DataFrame(schema={"item_id": pl.String})), interactions, None, source)
    items = _atomic(item_file, kept)
    guessed = dict(columns)
    for ours, theirs in (("title", ("movie_title", "item_name")), ("category", ("class", "categories"))):
        present = [name for name in theirs if name in items.columns]
        if ours not in guessed and ours not in items.columns and present:
            guessed[ours] = present[0]
    described = mapped(Table(items, (Part(item_file, items.height, 1),)), guessed, ("item_id",))
    return Source(described, interactions, None, source)


def _interactions(source: Path) -> tuple[str, list[Path]]:
    """The data set's name, and its one file of interactions or the parts `NAME.PART.inter` of it.

    Raises:
        DataError: none, or files that are not the parts of one.
    """
    names = sorted(name.removesuffix(".inter") for name in file_names(source) if name.endswith(".inter"))
    if not names:
        raise DataError(f"{source} has no .inter file.", "Give a folder of RecBole atomic files.")
    if len(names) == 1:
        return names[0], [source / f"{names[0]}.inter"]
    datasets = {name.rpartition(".")[0] for name in names}
    if len(datasets) > 1 or "" in datasets:
        raise DataError(
            f"{source} has the interactions of several data sets, or both a whole and its parts: "
            f"{several(f'{name}.inter' for name in names)}.",
            "Leave one data set: NAME.inter, or its parts NAME.train.inter, NAME.valid.inter, NAME.test.inter.",
        )
    order = {part: place for place, part in enumerate(_PARTS)}
    names.sort(key=lambda name: order.get(name.rpartition(".")[2], len(order)))
    return datasets.pop(), [source / f"{name}.inter" for name in names]


def _items(source: Path, dataset: str) -> Path | None:
    """The file of items: the only one, or that of the data set's name."""
    names = sorted(name for name in file_names(source) if name.endswith(".item"))
    if len(names) > 1 and f"{dataset}.item" not in names:
        raise DataError(
            f"{source} has several files of items: {several(names)}.", f"Name the right one {dataset}.item."
        )
    if len(names) > 1:
        names = [f"{dataset}.item"]
    return source / names[0] if names else None


def _atomic(file: Path, kept: set[str]) -> pl.DataFrame:
    """A RecBole atomic file: tab-separated, header `name:type`; a token_seq stays one text.

    Args:
        kept: columns that stay text where a value is no number, for whoever needs them to say so; in others such
            a value is null.
    """
    content = whole(file)
    decoded(content, file)
    try:
        header = pl.read_csv(content, separator="\t", quote_char=None, infer_schema=False, n_rows=0).columns
        check_columns_count(len(header), file)
        table = pl.read_csv(content, separator="\t", quote_char=None, infer_schema=False)
        columns = [_typed(table[name], file, kept) for name in header]
        return pl.DataFrame(columns).filter(~pl.all_horizontal(pl.all().is_null()))
    except pl.exceptions.PolarsError as error:
        _check_widths(content, file)
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Check the file.") from error


def _typed(column: pl.Series, file: Path, kept: set[str]) -> pl.Series:
    name, _, kind = column.name.partition(":")
    if not kind:
        raise DataError(
            f"{file}: the header {column.name!r} has no type.", "Write name:token, name:float, ..."
        )
    if kind not in _KINDS:
        raise DataError(
            f"{file}: the header {column.name!r} is of none of the types {several(_KINDS)}.",
            "Separate the columns by tabs, and write name:type for each.",
        )
    column = column.alias(name)
    if kind == "float":
        numbers = column.str.strip_chars(" ").cast(pl.Float64, strict=False)
        return column if name in kept and numbers.null_count() > column.null_count() else numbers
    if kind == "float_seq":
        words = column.str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
        numbers = words.cast(pl.List(pl.Float64), strict=False)
        whole_rows = numbers.list.eval(pl.element().is_not_null()).list.all()
        return pl.select(pl.when(whole_rows).then(numbers).alias(name)).to_series()
    return column


def _check_widths(content: bytes, file: Path) -> None:
    """Raises DataError for the first line that has more fields than the header."""
    widths = [line.count(b"\t") + 1 for line in content.split(b"\n") if line.strip()]
    for row, width in enumerate(widths):
        if width > widths[0]:
            line = row_line(file, row)
            raise DataError(f"{file} line {line} has {width} fields, not {widths[0]}.", "Mend that line.")
