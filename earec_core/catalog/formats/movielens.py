"""MovieLens: 100K (u.data, u.item), 1M (ratings.dat, movies.dat), latest (ratings.csv, movies.csv)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from earec_core.catalog.formats.columns import Source, mapped, read_table
from earec_core.catalog.formats.files import delimited, file_names, one_file

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


def detect(source: Path) -> bool:
    """Whether the folder holds one of the releases."""
    names = file_names(source)
    return any(files <= names for files in ({"u.data"}, {"ratings.dat"}, {"ratings.csv", "movies.csv"}))


def read(source: Path, columns: Mapping[str, str]) -> Source:
    """The tables of the folder; see `earec_core.catalog.formats.read`."""
    ratings = ("user_id", "item_id", "rating", "timestamp")
    if (source / "u.data").exists():
        inter_file, item_file = source / "u.data", source / "u.item"
        inter = delimited(inter_file, "\t", ratings)
        head = ("item_id", "title", "release_date", "video_date", "imdb")
        items = delimited(item_file, "|", [*head, *_ML100K_GENRES])
        flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in _ML100K_GENRES]
        category = pl.concat_str(flags, separator=", ", ignore_nulls=True).alias("category")
        items = items.select("item_id", "title", "release_date", category)
    elif (source / "ratings.dat").exists():
        inter_file, item_file = source / "ratings.dat", source / "movies.dat"
        inter = delimited(inter_file, "::", ratings)
        items = delimited(item_file, "::", ("item_id", "title", "genres"))
    else:
        inter_file, item_file = one_file(source, "ratings"), one_file(source, "movies")
        inter, items = read_table(inter_file, columns), read_table(item_file, columns)
    inter = mapped(inter, columns, inter_file, ("user_id", "item_id"))
    items = mapped(items, columns, item_file, ("item_id",))
    if "category" in items.columns:
        genres = pl.col("category").str.replace_all("|", ", ", literal=True)
        items = items.with_columns(pl.when(genres != "(no genres listed)").then(genres).alias("category"))
    return Source(items.drop("genres", strict=False), inter, None, source)
