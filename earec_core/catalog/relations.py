"""Which items belong together: as the source says, or as training sequences show."""

from __future__ import annotations

from typing import Literal

import polars as pl

from earec_core.catalog.formats import RELATION_KINDS, Source
from earec_core.errors import DataError

Relations = Literal["auto", "given", "cooccurrence", "none"]
_WINDOW, _TOP = 3, 10
_NONE = pl.DataFrame(schema={"item": pl.Int64, "related": pl.Int64, "kind": pl.String, "rank": pl.Int64})


def choose_relations(
    choice: Relations, source: Source, interactions: pl.DataFrame, rows: pl.DataFrame
) -> tuple[Relations, pl.DataFrame]:
    """Where relations come from, `auto` resolved, and the relations: `item`, `related`, `kind`, `rank`.

    Args:
        interactions: `user` and `item` rows in time order.
        rows: the row `item` of each `item_id`.
    """
    given = _NONE if source.relations is None else _by_row(source.relations.rows, rows)
    if choice == "given" and given.is_empty():
        raise DataError(f"{source.base} gives no relations.", "Choose --relations cooccurrence or none.")
    if choice == "auto":
        derived: Relations = "none" if interactions.is_empty() else "cooccurrence"
        choice = derived if given.is_empty() else "given"
    if choice == "cooccurrence":
        return choice, cooccurrence(interactions)
    return choice, given if choice == "given" else _NONE


def _by_row(relations: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The source's relations by the rows of their items, strongest kind first; of two alike the stronger."""
    strength = {kind: place for place, kind in enumerate(RELATION_KINDS)}
    related = rows.rename({"item_id": "related_id", "item": "related"})
    return (
        relations.with_columns(pl.col("item_id", "related_id").cast(pl.String))
        .with_columns(
            _kind=pl.col("kind").replace_strict(strength, default=len(strength), return_dtype=pl.Int64)
        )
        .join(rows, on="item_id", maintain_order="left")
        .join(related, on="related_id", maintain_order="left")
        .filter(pl.col("item") != pl.col("related"))
        .sort("item", "_kind", maintain_order=True)
        .unique(["item", "related"], keep="first", maintain_order=True)
        .with_columns(rank=pl.int_range(pl.len()).over("item"))
        .select("item", "related", "kind", "rank")
    )


def cooccurrence(interactions: pl.DataFrame) -> pl.DataFrame:
    """Relations from items that follow each other in *training* sequences.

    Each user's last two items, the validation and test targets, are left out (users with fewer than three
    have none). Pairs at most three places apart count once a user; an item's ten most frequent partners are
    kept, ties by row.

    Args:
        interactions: `user` and `item` rows in time order.

    Returns:
        `item`, `related`, `kind`, `rank` (from 0).
    """
    place, length = pl.int_range(pl.len()).over("user"), pl.len().over("user")
    train = interactions.lazy().filter((length < 3) | (place < length - 2)).select("user", "item")
    steps = [
        train.with_columns(related=pl.col("item").shift(-step).over("user")).drop_nulls()
        for step in range(1, _WINDOW + 1)
    ]
    pair = ("item", "related")
    pairs = (
        pl.concat(steps)
        .filter(pl.col("item") != pl.col("related"))
        .select("user", item=pl.min_horizontal(*pair), related=pl.max_horizontal(*pair))
        .unique()
        .group_by(*pair)
        .len()
    )
    mirrored = pairs.select(pl.col("related").alias("item"), pl.col("item").alias("related"), "len")
    return (
        pl.concat([pairs, mirrored])
        .sort("item", "len", "related", descending=[False, True, False])
        .with_columns(rank=pl.int_range(pl.len()).over("item"), kind=pl.lit("cooccurrence"))
        .filter(pl.col("rank") < _TOP)
        .select("item", "related", "kind", "rank")
        .collect()
    )
