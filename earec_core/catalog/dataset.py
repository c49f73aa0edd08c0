"""The dataset directory: three Parquet tables and a manifest, opened and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int
from polars.datatypes import DataTypeClass

from earec_core.catalog import splits
from earec_core.catalog.formats.files import check_regular, reason
from earec_core.catalog.splits import FROM, JOINED, LeaveOneOut, Sequences, Split
from earec_core.errors import DataError
from earec_core.files import sha256
from earec_core.types import Item

FORMAT, VERSION = "earec-dataset", 1
TABLES = ("items", "interactions", "relations")
_FIELDS = {"name": str, "base": str, "digest": str, "options": dict, "counts": dict, "digests": dict}
_AGAIN = "Import again with `earec data import --force`."


@dataclass(frozen=True, eq=False)
class Catalog:
    """A catalog of items with what is known of their use.

    Attributes:
        path: the dataset directory.
        manifest: name, source, options, counts, digests.
        items: one row an item: `item_id`, `title` and whatever else the source gives; file paths as the source
            gives them (`Item.path` has them absolute).
        interactions: `user` and `item` rows and `timestamp`, by user in time order.
        relations: `item`, `related` rows and `rank`, best first.
    """

    path: Path
    manifest: Mapping[str, Any]
    items: pl.DataFrame
    interactions: pl.DataFrame
    relations: pl.DataFrame

    @classmethod
    def open(cls, path: Path) -> Catalog:
        """Open a dataset directory.

        Raises:
            DataError: it is not there, is of another version, or a table is not what was imported.
        """
        manifest = read_manifest(path)
        digests, tables = manifest["digests"], {}
        for name in TABLES:
            file = path / f"{name}.parquet"
            check_regular(file, _AGAIN)
            try:
                if sha256(file) != digests.get(name):
                    raise DataError(f"The table {file} is not the one that was imported.", _AGAIN)
                tables[name] = pl.read_parquet(file)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise DataError(f"The table {file} cannot be read: {error}.", _AGAIN) from error
        return cls(path, manifest, **tables)

    @property
    def name(self) -> str:
        """The catalog's name, of letters, digits, dots and dashes."""
        return str(self.manifest["name"])

    @property
    def digest(self) -> str:
        """SHA-256 over the tables' rows; the same wherever and however often the source is imported."""
        return str(self.manifest["digest"])

    def __len__(self) -> int:
        return self.items.height

    def all_items(self) -> list[Item]:
        """Every item, by row."""
        return [self._item(index, row) for index, row in enumerate(self.items.iter_rows(named=True))]

    def item(self, index: int) -> Item:
        """The item of a row."""
        return self._item(index, self.items.row(index, named=True))

    def sequences(self) -> Sequences:
        """Every user's items in time order."""
        counts = self.interactions["user"].value_counts().sort("user")["count"].to_numpy()
        users = self.interactions.unique("user", keep="first", maintain_order=True)["user_id"].to_numpy()
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Sequences(users, offsets, self.interactions["item"].to_numpy().astype(np.int64))

    def leave_one_out(self) -> LeaveOneOut:
        """Training sequences, validation and test targets."""
        return splits.leave_one_out(self.sequences())

    def item_split(self, split: Split) -> Int[np.ndarray, " n"]:
        """Rows of the items in a split: 80/10/10 by a hash of the id, of joined catalogs by that in its own."""
        ids = self.items["item_id"].to_list()
        if FROM in self.items.columns:
            ids = [id_.partition("/")[2] for id_ in ids]
        return splits.item_split(ids, split)

    @property
    def base(self) -> Path:
        """The folder that the items' files are named from."""
        return self._base

    def _item(self, index: int, row: dict[str, Any]) -> Item:
        fields = {key: value for key, value in row.items() if value is not None}
        related = self._related.get(index, ())
        about, base = self.manifest.get("options") or {}, self._base
        if FROM in row:
            about = (self.manifest.get(JOINED) or {}).get(row[FROM]) or {}
            base = (self.path / str(about.get("base", ""))).resolve()
        outside = about.get("allow_outside") is True
        return Item(index, row["item_id"], row.get("title"), fields, related, base, outside)

    @cached_property
    def _base(self) -> Path:
        return (self.path / str(self.manifest.get("base", ""))).resolve()

    @cached_property
    def _related(self) -> dict[int, tuple[int, ...]]:
        grouped = self.relations.sort("item", "rank").group_by("item", maintain_order=True).agg("related")
        return {item: tuple(related) for item, related in grouped.iter_rows()}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a dataset directory.

    Raises:
        DataError: there is none, or it is of another version.
    """
    file = path / "manifest.json"
    if not os.path.lexists(file):
        raise DataError(
            f"{path} is no dataset directory (it has no manifest.json).",
            f"Make one: earec data import SOURCE --out {path}",
        )
    check_regular(file, _AGAIN)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {reason(error)}.", _AGAIN) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} is no dataset directory (its manifest.json is something else's).",
            "Make one: earec data import SOURCE --out DIR",
        )
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path} has version {manifest.get('version')!r} of the dataset format; this earec reads version "
            f"{VERSION}.",
            f"Import the source again: earec data import SOURCE --out {path} --force",
        )
    for key, kind in _FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            raise DataError(f"{file} is damaged: its {key} is {manifest.get(key)!r}.", _AGAIN)
    if not isinstance(manifest["counts"].get("columns"), dict):
        raise DataError(f"{file} is damaged: its counts lack columns.", _AGAIN)
    return manifest


def content_digest(tables: Mapping[str, pl.DataFrame]) -> str:
    """Hexadecimal SHA-256 over names, columns and rows. Parquet's bytes differ from one writing to the next."""
    digest = hashlib.sha256()
    for name, frame in sorted(tables.items()):
        digest.update(json.dumps([name, frame.height, frame.columns]).encode())
        # JSON has no bytes; columns with some follow the others, as Python writes them.
        files = [column for column, kind in frame.schema.items() if _has_bytes(kind)]
        for part in frame.drop(files).iter_slices(100_000):
            digest.update(part.write_ndjson().encode())
        for row in frame.select(files).iter_rows() if files else ():
            digest.update(repr(row).encode())
    return digest.hexdigest()


def _has_bytes(kind: pl.DataType | DataTypeClass) -> bool:
    if isinstance(kind, pl.Struct):
        return any(_has_bytes(field.dtype) for field in kind.fields)
    return kind == pl.Binary or (isinstance(kind, pl.List | pl.Array) and _has_bytes(kind.inner))
