"""Several catalogs as one, to be aligned on together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from earec_core.catalog.dataset import TABLES, Catalog
from earec_core.catalog.importing import check_out, write_dataset
from earec_core.catalog.splits import FROM, JOINED
from earec_core.errors import DataError
from earec_core.files import digest

_BETWEEN = "/"


def join_catalogs(
    catalogs: Sequence[Catalog], out: Path, *, name: str | None = None, force: bool = False
) -> Catalog:
    """Write several catalogs as one dataset directory: their items one after the other, users apart.

    Ids become `CATALOG/ID`; the column `from_catalog` says whose an item is. An item stays in the split (train,
    valid, test) that it is in in its own catalog, keeps its relations, and the files that it names are looked for
    where its own catalog has them.

    Args:
        catalogs: of different names, none of them joined itself.
        out: the dataset directory to be made.
        name: the catalog's name; default: theirs with dashes between.
        force: replace the dataset directory that is there.

    Raises:
        DataError: fewer than two, two of one name, one that was joined, columns that do not go together, or `out`
            is in the way.
    """
    check_out(out, force)
    names = [catalog.name for catalog in catalogs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"Catalogs of different names are joined, not {', '.join(names) or 'none'}.",
            "Import them with names of their own: earec data import --name NAME",
        )
    tables = _joined(catalogs)
    places = {
        catalog.name: {
            "base": os.path.relpath(catalog.base, out.resolve()),
            "allow_outside": catalog.manifest["options"].get("allow_outside") is True,
            "digest": catalog.digest,
        }
        for catalog in catalogs
    }
    about = {
        "name": name or "-".join(names),
        "domain": " and ".join(catalog.domain for catalog in catalogs),
        "source": ", ".join(names),
        "options": {"format": JOINED},
        "files": {"read": [], "left": []},
        JOINED: places,
    }
    return write_dataset(tables, out, out, about, replace=force)


def _joined(catalogs: Sequence[Catalog]) -> dict[str, pl.DataFrame]:
    """The tables of all catalogs, rows of items and users shifted behind those of the catalogs before."""
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in TABLES}
    first_user, first_item = 0, 0
    for catalog in catalogs:
        if FROM in catalog.items.columns:
            raise DataError(
                f"The catalog {catalog.name} is joined itself.", "Join the catalogs that it is of."
            )
        mark, item = pl.lit(f"{catalog.name}{_BETWEEN}"), pl.col("item") + first_item
        own = catalog.items.with_columns(item_id=mark + pl.col("item_id"))
        parts["items"].append(own.with_columns(pl.lit(catalog.name).alias(FROM)))
        user, user_id = pl.col("user") + first_user, mark + pl.col("user_id")
        parts["interactions"].append(catalog.interactions.with_columns(user=user, user_id=user_id, item=item))
        related = pl.col("related") + first_item
        parts["relations"].append(catalog.relations.with_columns(item=item, related=related))
        first_item += len(catalog)
        first_user += catalog.interactions["user"].n_unique()
    try:
        return {name: pl.concat(tables, how="diagonal_relaxed") for name, tables in parts.items()}
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"Columns of one name do not go together in {', '.join(c.name for c in catalogs)}: {error}.",
            "Name one of them otherwise when it is imported: earec data import --column",
        ) from error


def join_once(catalogs: Sequence[Catalog], folder: Path) -> Catalog:
    """The same in a folder of joined catalogs, made when it is not there yet."""
    places = [[catalog.digest, str(catalog.base)] for catalog in catalogs]
    out = folder / digest(places)[:16] / "-".join(catalog.name for catalog in catalogs)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was first
            return join_catalogs(catalogs, out)
    return Catalog.open(out)
