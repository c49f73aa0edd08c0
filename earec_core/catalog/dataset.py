"""The dataset directory: three Parquet tables and a manifest, checked when opened and read when they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from jaxtyping import Int
from polars.datatypes import DataTypeClass

from earec_core.catalog import splits
from earec_core.catalog.formats.files import check_regular, reason
from earec_core.catalog.splits import FROM, JOINED, LeaveOneOut, Sequences, Split
from earec_core.errors import DataError, UsageError
from earec_core.files import sha256
from earec_core.types import Item

FORMAT, VERSION = "earec-dataset", 1
TABLES = ("items", "interactions", "relations")
_FIELDS = {"name": str, "base": str, "digest": str, "options": dict, "counts": dict, "digests": dict}
_ROW, _IDS = " row", 65536
_AGAIN = "Import again with `earec data import --force`."


@dataclass(frozen=True, eq=False)
class Catalog:
    """A catalog of items with what is known of their use.

    Attributes:
        path: the dataset directory.
        manifest: name, domain, source, options, counts, digests.
        files: each table's file as it was when it was checked: device, inode, size, time.
    """

    path: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, tuple[int, ...]] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Open a dataset directory.

        Raises:
            DataError: it is not there, is of another version, or a table is not what was imported.
        """
        path = Path(path)
        manifest = read_manifest(path)
        digests, files = manifest["digests"], {}
        for name in TABLES:
            file = path / f"{name}.parquet"
            check_regular(file, _AGAIN)
            try:
                files[name] = _stamp(file)
                if sha256(file) != digests.get(name):
                    raise DataError(f"The table {file} is not the one that was imported.", _AGAIN)
                pl.read_parquet_schema(file)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise DataError(f"The table {file} cannot be read: {error}.", _AGAIN) from error
        return cls(path, manifest, files)

    @classmethod
    def of_tables(
        cls,
        path: Path,
        manifest: Mapping[str, Any],
        items: pl.DataFrame,
        interactions: pl.DataFrame,
        relations: pl.DataFrame,
    ) -> Self:
        """A catalog whose tables are in memory."""
        catalog = cls(path, manifest, {})
        vars(catalog).update(items=items, interactions=interactions, relations=relations)
        return catalog

    @cached_property
    def items(self) -> pl.DataFrame:
        """One row an item: `item_id`, `title` and whatever else the source gives.

        File paths are as the source gives them (`Item.path` has them absolute).
        """
        return self._read("items")

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """`user` and `item` rows and `timestamp`, by user in time order."""
        return self._read("interactions")

    @cached_property
    def relations(self) -> pl.DataFrame:
        """`item`, `related` rows and `rank`, best first."""
        return self._read("relations")

    @property
    def name(self) -> str:
        """The catalog's name, of letters, digits, dots and dashes."""
        return str(self.manifest["name"])

    @property
    def domain(self) -> str:
        """What prompts call the items' kind, as the import was told; the name, where it was not."""
        return str(self.manifest.get("domain", self.name))

    @property
    def digest(self) -> str:
        """SHA-256 over the tables' rows; the same wherever and however often the source is imported."""
        return str(self.manifest["digest"])

    def __len__(self) -> int:
        return self._length

    def all_items(self) -> list[Item]:
        """Every item, by row."""
        return self._made(range(len(self)), self.items)

    def item(self, index: int) -> Item:
        """The item of a row."""
        return self._made([index], self.items[index])[0]

    def items_at(self, rows: Sequence[int]) -> list[Item]:
        """The items of these rows, in their order; without the whole table in memory, unless it is there already.

        Args:
            rows: a range is quickest.

        Raises:
            DataError: the table is not the one that was opened any more.
        """
        if "items" in vars(self):
            return self._made(rows, self.items[list(rows)])
        if isinstance(rows, range) and rows.step == 1:
            start, number = rows.start, len(rows)
            return self._made(rows, self._read("items", lambda scan: scan.slice(start, number)))
        wanted = pl.Series(sorted(set(rows)), dtype=pl.UInt32)
        among = pl.col(_ROW).is_in(wanted.implode())
        found = self._read("items", lambda scan: scan.with_row_index(_ROW).filter(among))
        items = dict(zip(wanted, self._made(wanted.to_list(), found.drop(_ROW)), strict=True))
        return [items[row] for row in rows]

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """The rows of items by their ids, in this order.

        Raises:
            UsageError: there is no such item.
        """
        wanted, start = set(ids), 0
        rows = dict[str, int]()
        for some in self.ids():
            rows |= {id_: start + place for place, id_ in enumerate(some) if id_ in wanted}
            start += len(some)
        if missing := [id_ for id_ in ids if id_ not in rows]:
            raise UsageError(
                f"The catalog {self.name!r} has no item {missing[0]!r}.", "Give ids of the source data."
            )
        return [rows[id_] for id_ in ids]

    def titles(self, ids: Sequence[str]) -> dict[str, str]:
        """The titles of items by their ids, of those that are there and have one."""
        wanted = pl.col("item_id").is_in(list(ids)) & pl.col("title").is_not_null()
        if "items" in vars(self):
            rows = self.items.filter(wanted)
        else:
            rows = self._read("items", lambda scan: scan.select("item_id", "title").filter(wanted))
        return dict(rows.select("item_id", "title").iter_rows())

    def ids(self) -> Iterator[list[str]]:
        """Every item's id, by row, some thousands at a time."""
        for start in range(0, len(self), _IDS):
            yield self._some_ids(start)["item_id"].to_list()

    def _some_ids(self, start: int) -> pl.DataFrame:
        if "items" in vars(self):
            return self.items[start : start + _IDS]
        return self._read("items", lambda scan: scan.select("item_id").slice(start, _IDS))

    def sequences(self) -> Sequences:
        """Every user's items in time order."""
        rows = self.interactions["user"].to_numpy()
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        users = self.interactions["user_id"].gather(starts).to_numpy()
        offsets = np.append(starts, len(rows)).astype(np.int64)
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

    def _made(self, rows: Sequence[int], table: pl.DataFrame) -> list[Item]:
        return [
            self._item(row, values) for row, values in zip(rows, table.iter_rows(named=True), strict=True)
        ]

    def _item(self, index: int, row: dict[str, Any]) -> Item:
        fields = {key: value for key, value in row.items() if value is not None}
        about, base = self.manifest.get("options") or {}, self._base
        if FROM in row:
            about = (self.manifest.get(JOINED) or {}).get(row[FROM]) or {}
            base = (self.path / str(about.get("base", ""))).resolve()
        outside = about.get("allow_outside") is True
        return Item(index, row["item_id"], row.get("title"), fields, self._related(index), base, outside)

    def _read(
        self, name: str, part: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda scan: scan
    ) -> pl.DataFrame:
        """A table, or a part of it."""
        file = self.path / f"{name}.parquet"
        try:
            if _stamp(file) != self.files[name]:
                raise DataError(f"The table {file} was replaced while it was in use.", "Run the same again.")
            return part(pl.scan_parquet(file, glob=False)).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"The table {file} cannot be read: {error}.", _AGAIN) from error

    @cached_property
    def _base(self) -> Path:
        return (self.path / str(self.manifest.get("base", ""))).resolve()

    @cached_property
    def _length(self) -> int:
        if "items" in vars(self):
            return self.items.height
        return int(self._read("items", lambda scan: scan.select(pl.len())).item())

    def _related(self, index: int) -> tuple[int, ...]:
        starts, related = self._relations
        return tuple(related[starts[index] : starts[index + 1]].tolist()) if len(related) else ()

    @cached_property
    def _relations(self) -> tuple[Int[np.ndarray, " n1"], Int[np.ndarray, " r"]]:
        """Where each item's related rows start, and those of all items one after another, best first."""
        ordered = self.relations.sort("item", "rank")
        starts = np.searchsorted(ordered["item"].to_numpy(), np.arange(len(self) + 1))
        return starts, ordered["related"].to_numpy()


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file is replaced."""
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


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
