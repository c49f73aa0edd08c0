"""The part of amazon-office-2018 that words are known of: items with an anchor, or with title, category and brand.

Usage: with_words.py SOURCE OUT
Users keep their interactions with these items, in order, and are left out below three. The title of an item is its
anchor ("Title. Category. Brand."), or what the three make together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    parts = pl.concat_str(pl.col("title", "category", "brand"), separator=". ", ignore_nulls=True) + "."
    items = (
        pl.read_ndjson(source / "items.jsonl")
        .select("item_id", title=pl.coalesce("anchor", pl.when(pl.col("title").is_not_null()).then(parts)))
        .drop_nulls()
    )
    interactions = pl.read_csv(source / "interactions.csv").join(items, on="item_id", how="semi")
    interactions = interactions.filter(pl.len().over("user_id") >= 3).sort("user_id", "position")
    relations = pl.read_csv(source / "relations.csv")
    for column in ("item_id", "related_item_id"):
        relations = relations.join(items, left_on=column, right_on="item_id", how="semi")
    out.mkdir(parents=True)
    items.write_ndjson(out / "items.jsonl")
    interactions.write_csv(out / "interactions.csv")
    relations.write_csv(out / "relations.csv")


if __name__ == "__main__":
    main()
