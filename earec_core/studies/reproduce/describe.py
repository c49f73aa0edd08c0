"""Table 1 of the paper: what the catalogs hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from earec_core.catalog import Catalog


def describe(catalogs: Sequence[Catalog]) -> list[dict[str, Any]]:
    """A row a catalog.

    Returns:
        `dataset`; `users`, `items`, `interactions`, as they were imported; `length`, interactions a user on average
        (the paper's Avg. n); `density`, of all pairs of a user and an item the part that met; `fields`, by field of
        the items how many have it.
    """
    rows = []
    for catalog in catalogs:
        sequences, items = catalog.sequences(), catalog.items
        users, interactions = len(sequences), len(sequences.items)
        present = items.select(c for c in items.columns if c != "item_id").count()
        rows.append(
            {
                "dataset": catalog.name,
                "users": users,
                "items": len(catalog),
                "interactions": interactions,
                "length": interactions / users if users else 0.0,
                "density": interactions / (users * len(catalog)) if users else 0.0,
                "fields": dict(zip(present.columns, present.row(0), strict=True)),
            }
        )
    return rows
