"""A catalog with further items, as they would be had they been imported with it; nobody has used them yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from earec_core.catalog.dataset import Catalog, content_digest
from earec_core.catalog.formats.lines import brief
from earec_core.catalog.items import as_imported, can_hold
from earec_core.errors import UsageError, one_line
from earec_core.files import digest
from earec_core.types import Item

_REFUSED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError, OverflowError)
"""What polars raises at a value that is none of a column's."""


@dataclass(frozen=True, eq=False)
class GrownCatalog(Catalog):
    """A catalog with further items behind its own.

    Their files are looked for in the catalog's folder alone, whatever its import was told: who adds an item need
    not be who imported the catalog.

    Attributes:
        first: the catalog without them.
    """

    first: Catalog

    @classmethod
    def of(cls, catalog: Catalog, added: Sequence[pl.DataFrame]) -> GrownCatalog:
        """The catalog with the items of these `item_row`s."""
        rows = pl.concat(added) if added else catalog.items.clear()
        identity = digest([catalog.digest, content_digest({"items": rows})]) if added else catalog.digest
        grown = cls(catalog.path, {**catalog.manifest, "digest": identity}, {}, catalog)
        tables = {"interactions": catalog.interactions, "relations": catalog.relations}
        vars(grown).update(items=pl.concat([catalog.items, rows]), **tables)
        return grown

    def _item(self, index: int, row: dict[str, Any]) -> Item:
        item = super()._item(index, row)
        return item if index < len(self.first) else replace(item, outside=False)

    def _related(self, index: int) -> tuple[int, ...]:
        return self.first._related(index) if index < len(self.first) else ()


def item_row(catalog: Catalog, fields: Mapping[str, Any]) -> pl.DataFrame:
    """One further item of a catalog, as a row of its item table.

    Args:
        fields: by the catalog's columns, as JSON has them; `item_id` must be there.

    Raises:
        UsageError: the catalog has no such column, or its values are of another kind.
    """
    schema = catalog.items.schema
    if unknown := [name for name in fields if name not in schema]:
        raise UsageError(
            f"The catalog {catalog.name!r} has no column {unknown[0]!r}.", f"It has {', '.join(schema)}."
        )
    identity = fields.get("item_id")
    if not isinstance(identity, str) or not identity.strip():
        raise UsageError("The item has no item_id.", "Give it one, a text.")
    return pl.DataFrame([_cell(name, kind, fields.get(name)) for name, kind in schema.items()])


def _cell(name: str, kind: pl.DataType, value: Any) -> pl.Series:
    """A value as the column holds it; null for what an import leaves out."""
    try:
        given = pl.DataFrame({name: [value]}, strict=False)
        if not can_hold(given.schema[name]):
            return pl.Series(name, [None], dtype=kind)
        cell = given.select(as_imported(name, given.schema[name]))[name]
        nested = isinstance(given.schema[name], pl.Struct) or cell.dtype.is_nested()
        if nested and not kind.is_nested():
            raise TypeError(f"it is {brief(given.schema[name])}")
        return cell.cast(kind, strict=True)
    except _REFUSED as error:
        raise UsageError(
            f"The item's {name} is not of the catalog's kind, {kind} ({one_line(error)[:200]}).",
            "Give it as the catalog's other items have it.",
        ) from None
