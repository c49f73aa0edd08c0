"""A plugin's examples as a catalog, without a file of it on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from earec_core.catalog import Catalog
from earec_core.modality import Item, content_digest


class _Examples(Catalog):
    """Too few items to split: all are trained on, all are validated on."""

    def item_split(self, split: str, seed: int = 0) -> Any:
        return np.arange(len(self))


def catalog_of(items: Sequence[Item], folder: Path) -> Catalog:
    """A catalog of these items; those without a title get one, to be aligned to.

    Args:
        folder: the catalog's base folder.
    """
    rows = [
        {**item.fields, "item_id": item.id, "title": item.title or f"Example {row}"}
        for row, item in enumerate(items)
    ]
    relations = [
        (row, related, rank) for row, item in enumerate(items) for rank, related in enumerate(item.relations)
    ]
    return _Examples.of_tables(
        folder,
        {"name": "examples", "digest": content_digest(repr(rows)).hex()},
        pl.from_dicts(rows, infer_schema_length=None),
        pl.DataFrame(schema={"user": pl.Int64, "user_id": pl.String, "item": pl.Int64}),
        pl.DataFrame(
            relations, schema={"item": pl.Int64, "related": pl.Int64, "rank": pl.Int64}, orient="row"
        ),
    )
