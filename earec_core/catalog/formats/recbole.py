"""RecBole's atomic files: *.inter and *.item, tab-separated with typed headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import Source, mapped
from earec_core.catalog.formats.files import file_names, reason
from earec_core.errors import DataError


def detect(source: Path) -> bool:
    """Whether the folder holds interactions."""
    return any(name.endswith(".inter") for name in file_names(source))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    inter_file, item_file = (_ending(source, ending) for ending in (".inter", ".item"))
    items = pl.DataFrame(schema={"item_id": pl.String}) if item_file is None else _atomic(item_file)
    if inter_file is None:
        raise DataError(f"{source} has no .inter file.", "Give a folder of RecBole atomic files.")
    guessed = dict(columns)
    for ours, theirs in (("title", ("movie_title", "item_name")), ("category", ("class", "categories"))):
        present = [name for name in theirs if name in items.columns]
        if ours not in guessed and ours not in items.columns and present:
            guessed[ours] = present[0]
    inter = mapped(_atomic(inter_file), columns, inter_file, ("user_id", "item_id"))
    return Source(mapped(items, guessed, item_file or source, ("item_id",)), inter, None, source)


def _atomic(file: Path) -> pl.DataFrame:
    """A RecBole atomic file: tab-separated, header `name:type`; a token_seq stays one text."""
    try:
        table = pl.read_csv(file, separator="\t", quote_char=None, infer_schema=False)
        typed = []
        for header in table.columns:
            name, _, kind = header.partition(":")
            column = pl.col(header)
            if not kind:
                raise DataError(
                    f"{file}: the header {header!r} has no type.", "Write name:token, name:float, ..."
                )
            if kind == "float":
                column = column.cast(pl.Float64)
            elif kind == "float_seq":
                column = column.str.split(" ").cast(pl.List(pl.Float64))
            typed.append(column.alias(name))
        return table.select(typed)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {reason(error)}.", "Check the file.") from error


def _ending(source: Path, ending: str) -> Path | None:
    return next((p for p in sorted(source.iterdir()) if p.name.endswith(ending)), None)
