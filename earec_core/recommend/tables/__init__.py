"""The table of item tables, by the setting `recommender.table`.

Another one is a file and a row, or installed: a plugin of the kind `ITEM_TABLE`, an entry point that yields a
`TableKind`. Whatever its name, `NAME+ids` adds a trained embedding per id to it.
"""

from __future__ import annotations

from earec_core import plugins
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.recommend.tables.base import Items, ItemTable, TableKind
from earec_core.recommend.tables.ids import IDS, IdTable, PlusIds
from earec_core.recommend.tables.linear import LINEAR
from earec_core.recommend.tables.mlp import MLP
from earec_core.recommend.tables.moe import MOE

__all__ = ["ITEM_TABLE", "TABLES", "IdTable", "ItemTable", "Items", "TableKind", "build_table", "table_names"]

PLUS_IDS = "+ids"
TABLES = {table.name: table for table in (LINEAR, MLP, MOE, IDS)}

ITEM_TABLE = plugins.Kind(
    "item table", "earec.item_tables", plugins.instance_check(TableKind), reserved=lambda: TABLES
)
"""The kind of plugin that brings an item table."""


def table_names() -> list[str]:
    """Every table's name, those of plugins last; nothing is imported."""
    return plugins.names_in(TABLES, ITEM_TABLE)


def check_table(name: str) -> TableKind:
    """The kind of table that a setting names, with `+ids` or without.

    Raises:
        UsageError: there is none, it is built on no vectors, or ids would be added to ids.
        PluginError: a plugin brings it and is not usable.
    """
    base = name.removesuffix(PLUS_IDS)
    kind = plugins.choose(TABLES, ITEM_TABLE, base, "item table")
    if not kind.needs_vectors:
        raise UsageError(
            f"The item table {name!r} reads no item vectors.",
            "Set recommender.table to another, or train on ids: earec recommend train --ids.",
        )
    return kind


def build_table(config: RecommenderConfig, items: Items) -> ItemTable:
    """The table that `recommender.table` names, for items with vectors.

    Raises:
        UsageError, PluginError: see `check_table`.
    """
    table = check_table(config.table).build(config, items)
    return PlusIds(table, items, config) if config.table.endswith(PLUS_IDS) else table
