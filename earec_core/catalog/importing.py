"""`earec data import`: a source to a dataset directory; k-core, time order, relations, counts."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

import earec_core
from earec_core.catalog import formats
from earec_core.catalog.dataset import FORMAT, PATH_COLUMNS, VERSION, Catalog, file_digest, read_manifest
from earec_core.errors import DataError

Relations = Literal["auto", "given", "cooccurrence", "none"]
_TEXT = ("title", "description", "category", "brand")
_WINDOW, _TOP = 3, 10


def import_dataset(
    source: Path,
    out: Path,
    *,
    format: str = "auto",  # noqa: A002 - the option's name
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    core: int = 5,
    min_rating: float | None = None,
    max_len: int | None = None,
    relations: Relations = "auto",
    force: bool = False,
) -> Catalog:
    """Import a catalog and write it as a dataset directory, complete or not at all.

    Args:
        source: the folder of the source's files.
        out: the dataset directory to be made.
        format: a key of `formats.READERS`, or `auto`.
        columns: EAREC's column names to the source's, `a|b` for the first that is not empty.
        name: the catalog's name; default: the name of `out`.
        core: users and items with fewer interactions are dropped, until none is left (5 in the paper).
        min_rating: interactions rated lower are dropped.
        max_len: each user's most recent interactions, at most; applied last.
        relations: given by the source, derived from co-occurrence in training sequences, none, or `auto`:
            given where there are any, else derived.
        force: replace the dataset directory that is there.

    Raises:
        DataError: see `formats`; also nothing left after filtering, no title at all, `out` in the way.
    """
    _check_out(out, force)
    found = formats.read(source, formats.detect(source) if format == "auto" else format, columns or {})
    formats.check_columns(columns or {}, found)
    interactions = _interactions(found.interactions, core=core, min_rating=min_rating, max_len=max_len)
    items = _items(found, interactions, out)
    if found.interactions.height and not interactions.height:
        raise DataError(
            f"No interaction of {source} is left after {core}-core filtering.",
            "Lower --core or --min-rating.",
        )
    if not items.height:
        raise DataError(f"The catalog {source} is empty.", "Check the files.")
    if "title" not in items.columns or items["title"].null_count() == items.height:
        raise DataError(
            f"No item of {source} has a title; columns: {', '.join(items.columns)}.",
            "Say which column it is: --column title=SOURCE",
        )
    rows = items.select("item_id").with_row_index("item").cast({"item": pl.Int64})
    users = interactions.select("user_id").unique(maintain_order=True).with_row_index("user")
    interactions = (
        interactions.join(rows, on="item_id", maintain_order="left")
        .join(users.cast({"user": pl.Int64}), on="user_id", maintain_order="left")
        .select("user", "user_id", "item", "timestamp")
    )
    given = _given(found.relations, rows)
    if relations == "given" and given is None:
        raise DataError(f"{source} gives no relations.", "Choose --relations cooccurrence or none.")
    kind = relations
    if relations == "auto":
        kind = "given" if given is not None else "cooccurrence"
    if kind == "given" and given is not None:
        related = given
    else:
        related = cooccurrence(interactions) if kind == "cooccurrence" else _NO_RELATIONS
    options = {
        "core": core,
        "min_rating": min_rating,
        "max_len": max_len,
        "relations": kind,
        "columns": dict(columns or {}),
    }
    tables = {"items": items, "interactions": interactions, "relations": related}
    return _write(tables, out, _slug(name or out.name), options, source.name)


def k_core(interactions: pl.DataFrame, core: int) -> pl.DataFrame:
    """Interactions whose user and item both have at least `core` of them, to a fixed point, order kept."""
    while True:
        before = interactions.height
        for key in ("user_id", "item_id"):
            interactions = interactions.filter(pl.len().over(key) >= core)
        if interactions.height == before:
            return interactions


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
    pairs = pl.concat(steps).filter(pl.col("item") != pl.col("related"))
    both = pl.concat(
        [pairs, pairs.select("user", pl.col("related").alias("item"), pl.col("item").alias("related"))]
    )
    return (
        both.unique()
        .group_by("item", "related")
        .len()
        .sort("item", "len", "related", descending=[False, True, False])
        .with_columns(rank=pl.int_range(pl.len()).over("item"), kind=pl.lit("cooccurrence"))
        .filter(pl.col("rank") < _TOP)
        .select("item", "related", "kind", "rank")
        .collect()
    )


_NO_RELATIONS = pl.DataFrame(
    schema={"item": pl.Int64, "related": pl.Int64, "kind": pl.String, "rank": pl.Int64}
)


def _interactions(
    table: pl.DataFrame, *, core: int, min_rating: float | None, max_len: int | None
) -> pl.DataFrame:
    """Filtered and in time order; equal timestamps keep the source's order, exact repetitions count once."""
    table = table.with_columns(pl.col("user_id", "item_id").cast(pl.String)).drop_nulls(
        ["user_id", "item_id"]
    )
    if min_rating is not None:
        if "rating" not in table.columns:
            raise DataError(
                "The interactions have no rating.", "Leave out --min-rating or map --column rating=."
            )
        table = table.filter(pl.col("rating").cast(pl.Float64) >= min_rating)
    table = _timed(table).unique(["user_id", "item_id", "timestamp"], keep="first", maintain_order=True)
    table = k_core(table, core)
    # Users in the order of their first row in the source; sorts are stable.
    firsts = table.select("user_id").unique(maintain_order=True).with_row_index("_user")
    table = table.join(firsts, on="user_id", maintain_order="left").sort(
        "_user", "timestamp", maintain_order=True
    )
    if max_len is not None:
        table = table.filter(pl.int_range(pl.len()).over("user_id") >= pl.len().over("user_id") - max_len)
    return table.select("user_id", "item_id", "timestamp")


def _timed(table: pl.DataFrame) -> pl.DataFrame:
    if "timestamp" not in table.columns:
        return table.with_columns(timestamp=pl.int_range(pl.len(), dtype=pl.Float64))
    time = pl.col("timestamp")
    if table.schema["timestamp"] == pl.String:
        number = table["timestamp"].cast(pl.Float64, strict=False)
        if number.null_count() == table["timestamp"].null_count():
            time = time.cast(pl.Float64)
        else:
            try:
                time = time.str.to_datetime(strict=True, time_unit="ms").dt.timestamp("ms") / 1000
                return table.with_columns(timestamp=time)
            except pl.exceptions.PolarsError as error:
                raise DataError(
                    f"The timestamps are neither numbers nor dates: {table['timestamp'][0]!r}.",
                    "Map another column with --column timestamp=SOURCE.",
                ) from error
    return table.with_columns(timestamp=time.cast(pl.Float64))


def _items(found: formats.Source, interactions: pl.DataFrame, out: Path) -> pl.DataFrame:
    items = found.items.with_columns(pl.col("item_id").cast(pl.String)).unique(
        "item_id", keep="first", maintain_order=True
    )
    if found.interactions.height:
        used = interactions.select("item_id").unique(maintain_order=True)
        known = items.join(used, on="item_id", how="semi", maintain_order="left")
        unknown = used.join(items, on="item_id", how="anti", maintain_order="left")
        items = pl.concat([known, unknown], how="diagonal_relaxed")
    made = []
    for column, kind in items.schema.items():
        text = pl.col(column)
        if isinstance(kind, pl.List):
            text = text.cast(pl.List(pl.String)).list.join(", ")
        elif kind != pl.String:
            continue
        if column in PATH_COLUMNS:
            made.append(text.map_elements(lambda p: _path(p, found.base, out), return_dtype=pl.String))
            continue
        if column in _TEXT:
            text = text.map_elements(_clean, return_dtype=pl.String)
        made.append(pl.when(text.str.strip_chars() != "").then(text).alias(column))
    items = items.with_columns(made)
    return items.select(
        "item_id", *[c for c in items.columns if c != "item_id" and items.schema[c] != pl.Null]
    )


def _clean(text: str) -> str:
    """HTML entities resolved, whitespace folded. Entities in the wild are escaped up to twice."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def _path(path: str, base: Path, out: Path) -> str:
    """File paths relative to the dataset directory; addresses stay as they are."""
    if "://" in path:
        return path
    return os.path.relpath((base / path).absolute(), out.absolute())


def _given(relations: pl.DataFrame | None, rows: pl.DataFrame) -> pl.DataFrame | None:
    if relations is None or not relations.height:
        return None
    strength = {kind: i for i, kind in enumerate(formats.RELATION_KINDS)}
    table = (
        relations.with_columns(pl.col("item_id", "related_id").cast(pl.String))
        .with_columns(
            _kind=pl.col("kind").replace_strict(strength, default=len(strength), return_dtype=pl.Int64)
        )
        .join(rows, on="item_id", maintain_order="left")
        .join(
            rows.rename({"item_id": "related_id", "item": "related"}), on="related_id", maintain_order="left"
        )
        .filter(pl.col("item") != pl.col("related"))
        .sort("item", "_kind", maintain_order=True)
        .unique(["item", "related"], keep="first", maintain_order=True)
    )
    return table.with_columns(rank=pl.int_range(pl.len()).over("item")).select(
        "item", "related", "kind", "rank"
    )


def _counts(items: pl.DataFrame, interactions: pl.DataFrame, related: pl.DataFrame) -> dict[str, Any]:
    """The counts of the paper's Table 1, and how many items have each column."""
    users = interactions["user"].n_unique()
    present = {c: items.height - items[c].null_count() for c in items.columns if c != "item_id"}
    return {
        "users": users,
        "items": items.height,
        "interactions": interactions.height,
        "average_length": round(interactions.height / users, 2) if users else 0.0,
        "image": present.get("image", 0),
        "without_title": items.height - present.get("title", 0),
        "relations": related.height,
        "columns": present,
    }


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise DataError(f"{out} is already there.", "Choose another --out or replace it with --force.")
    if not (out / "manifest.json").exists():
        raise DataError(f"{out} is no dataset directory and is not replaced.", "Choose another --out.")


def _write(
    tables: Mapping[str, pl.DataFrame], out: Path, name: str, options: Mapping[str, Any], source: str
) -> Catalog:
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        digests = {}
        for table, frame in tables.items():
            frame.write_parquet(temp / f"{table}.parquet")
            digests[table] = file_digest(temp / f"{table}.parquet")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "name": name,
            "source": source,
            "earec": earec_core.__version__,
            "options": options,
            "counts": _counts(tables["items"], tables["interactions"], tables["relations"]),
            "digests": digests,
            "digest": hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        }
        (temp / "manifest.json").write_text(json.dumps(manifest, indent=1))
        temp.chmod(0o755)
        if out.exists():
            read_manifest(out)
            old = out.with_name(f"{temp.name}-old")
            out.rename(old)
            temp.rename(out)
            shutil.rmtree(old)
        else:
            temp.rename(out)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return Catalog.open(out)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "catalog"
