"""MovieLens: 100K (u.data, u.item), 1M (ratings.dat, movies.dat), latest (ratings.csv, movies.csv)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import Part, Source, Table, mapped, read_table
from earec_core.catalog.formats.delimited import unquoted
from earec_core.catalog.formats.files import file_names, one_file

_ML100K_GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


_RATINGS = ("user_id", "item_id", "rating", "timestamp")


def detect(source: Path) -> bool:
    """Whether the folder holds one of the releases."""
    names = file_names(source)
    return any(files <= names for files in ({"u.data"}, {"ratings.dat"}, {"ratings.csv", "movies.csv"}))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    names = file_names(source)
    if "u.data" in names:
        interactions = _table(source / "u.data", "\t", _RATINGS)
        head = ("item_id", "title", "release_date", "video_date", "imdb")
        items = _table(source / "u.item", "|", [*head, *_ML100K_GENRES])
        flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in _ML100K_GENRES]
        category = pl.concat_str(flags, separator=", ", ignore_nulls=True).alias("category")
        items = replace(items, rows=items.rows.select("item_id", "title", "release_date", category))
    elif "ratings.dat" in names:
        interactions = _table(source / "ratings.dat", "::", _RATINGS)
        items = _table(source / "movies.dat", "::", ("item_id", "title", "genres"))
    else:
        interactions = read_table(one_file(source, "ratings"), columns)
        items = read_table(one_file(source, "movies"), columns)
    interactions = mapped(interactions, columns, ("user_id", "item_id"))
    items = mapped(items, columns, ("item_id",))
    rows = items.rows
    if rows.schema.get("category") == pl.String:
        genres = pl.col("category").str.replace_all("|", ", ", literal=True)
        rows = rows.with_columns(pl.when(genres != "(no genres listed)").then(genres).alias("category"))
    return Source(replace(items, rows=rows.drop("genres", strict=False)), interactions, None, source)


def _table(file: Path, separator: str, names: Sequence[str]) -> Table:
    rows = unquoted(file, separator, names)
    return Table(rows, (Part(file, rows.height),))
