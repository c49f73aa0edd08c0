"""`earec data import`: a source to a dataset directory; k-core, time order, relations, counts."""

from __future__ import annotations

import errno
import html
import io
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
from earec_core.catalog.dataset import FORMAT, VERSION, Catalog, content_digest, file_digest
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
        format: a key of `formats.FORMATS`, or `auto`.
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
        OSError: the disk is full; `out` is as it was.
    """
    _check_out(out, force)
    if not source.is_dir():
        raise DataError(f"{source} is no folder.", "Give the folder that holds the source's files.")
    kind = formats.detect(source) if format == "auto" else format
    read = formats.read(source, kind, columns or {})
    formats.check_columns(columns or {}, read)
    interactions = _interactions(read.interactions, core=core, min_rating=min_rating, max_len=max_len)
    items = _items(read, interactions)
    _check_left(source, read, items, interactions, core)
    rows = items.select("item_id").with_row_index("item").cast({"item": pl.Int64})
    interactions = _by_row(interactions, rows)
    chosen, related = _relations(relations, _given(read.relations, rows), interactions, source)
    options = {
        "format": kind,
        "core": core,
        "min_rating": min_rating,
        "max_len": max_len,
        "relations": chosen,
        "columns": dict(columns or {}),
    }
    tables = {"items": items, "interactions": interactions, "relations": related}
    about = {"name": _slug(name or out.name), "source": source.name, "options": options}
    return _write(tables, out, read.base, about)


def _check_left(
    source: Path, read: formats.Source, items: pl.DataFrame, interactions: pl.DataFrame, core: int
) -> None:
    """Raises DataError when nothing is left to work with."""
    if read.interactions.height and not interactions.height:
        raise DataError(
            f"None of {source}'s {read.interactions.height:,} interactions is left after {core}-core filtering.",
            "Lower --core or --min-rating, or check that the columns are the right ones.",
        )
    if not items.height:
        raise DataError(f"The catalog {source} is empty.", "Check the files.")
    if "title" not in items.columns or items["title"].null_count() == items.height:
        raise DataError(
            f"No item of {source} has a title; columns: {', '.join(items.columns)}.",
            "Say which column it is: --column title=SOURCE",
        )


def _by_row(interactions: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Interactions by the rows of their users and items."""
    users = interactions.select("user_id").unique(maintain_order=True).with_row_index("user")
    return (
        interactions.join(rows, on="item_id", maintain_order="left")
        .join(users.cast({"user": pl.Int64}), on="user_id", maintain_order="left")
        .select("user", "user_id", "item", "timestamp")
    )


def _relations(
    asked: Relations, given: pl.DataFrame | None, interactions: pl.DataFrame, source: Path
) -> tuple[Relations, pl.DataFrame]:
    """Where relations come from, `auto` resolved, and the relations."""
    if asked == "given" and given is None:
        raise DataError(f"{source} gives no relations.", "Choose --relations cooccurrence or none.")
    chosen = asked
    if asked == "auto":
        derived: Relations = "cooccurrence" if interactions.height else "none"
        chosen = derived if given is None else "given"
    if chosen == "given" and given is not None:
        return chosen, given
    return chosen, cooccurrence(interactions) if chosen == "cooccurrence" else _NO_RELATIONS


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
    """Filtered and in time order; equal timestamps keep the source's order.

    Rows with the user, item and timestamp of an earlier row count once; coming back to an item later counts.
    """
    table = table.with_columns(pl.col("user_id", "item_id").cast(pl.String)).drop_nulls(
        ["user_id", "item_id"]
    )
    if min_rating is not None:
        if "rating" not in table.columns:
            raise DataError(
                f"The interactions have no rating; they have {', '.join(table.columns)}.",
                "Leave out --min-rating, or say which column it is: --column rating=SOURCE",
            )
        table = table.filter(_numbers(table, "rating") >= min_rating)
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
    """The time as a number: seconds for dates, else as the source counts; file order where it gives none."""
    if "timestamp" not in table.columns:
        return table.with_columns(timestamp=pl.int_range(pl.len()).cast(pl.Float64))
    time = table["timestamp"]
    missing = time.null_count()
    if not time.dtype.is_temporal():
        missing += int((~time.cast(pl.Float64, strict=False).is_finite()).sum())
    if missing:
        raise DataError(
            f"{missing:,} of {table.height:,} interactions have no timestamp.",
            "Remove them, or map another column with --column timestamp=SOURCE",
        )
    if time.dtype == pl.String and time.cast(pl.Float64, strict=False).null_count():
        try:
            time = time.str.to_datetime(time_unit="ms", time_zone="UTC")
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"The timestamps are neither numbers nor dates, such as {time[0]!r}.",
                "Map another column with --column timestamp=SOURCE",
            ) from error
    if time.dtype.is_temporal():
        return table.with_columns(timestamp=time.dt.timestamp("ms") / 1000)
    return table.with_columns(timestamp=time.cast(pl.Float64))


def _numbers(table: pl.DataFrame, column: str) -> pl.Series:
    numbers = table[column].cast(pl.Float64, strict=False)
    wrong = table[column].filter(numbers.is_null() & table[column].is_not_null())
    if len(wrong):
        raise DataError(
            f"The column {column} has {wrong[0]!r}, which is no number.",
            f"Map another column with --column {column}=SOURCE",
        )
    return numbers


def _items(read: formats.Source, interactions: pl.DataFrame) -> pl.DataFrame:
    items = read.items.with_columns(pl.col("item_id").cast(pl.String))
    missing = items["item_id"].null_count()
    if missing:
        raise DataError(
            f"{missing:,} of {items.height:,} items have no item_id.", "Add it or remove those rows."
        )
    items = items.unique("item_id", keep="first", maintain_order=True)
    if read.interactions.height:
        used = interactions.select("item_id").unique(maintain_order=True)
        known = items.join(used, on="item_id", how="semi", maintain_order="left")
        unknown = used.join(items, on="item_id", how="anti", maintain_order="left")
        if items.height and used.height and not known.height:
            raise DataError(
                f"No interaction of {read.base} is with one of its items: the interactions' ids are such as "
                f"{used.item(0, 0)!r}, the items' such as {items['item_id'][0]!r}.",
                "Say which column it is: --column item_id=SOURCE",
            )
        items = pl.concat([known, unknown], how="diagonal_relaxed")
    for column in _TEXT:
        kind = items.schema.get(column)
        if kind is not None and (kind.inner if isinstance(kind, pl.List) else kind).is_nested():
            raise DataError(
                f"The column {column} of {read.base}'s items holds {kind}, not texts or lists of texts.",
                f"Flatten it, or name another: --column {column}=SOURCE",
            )
    items = items.with_columns(
        [made for c, kind in items.schema.items() if (made := _cell(c, kind)) is not None]
    )
    return items.select(
        "item_id", *[c for c in items.columns if c != "item_id" and items.schema[c] != pl.Null]
    )


def _cell(column: str, kind: pl.DataType) -> pl.Expr | None:
    """A text column as one text a row, another's texts and lists of texts as they are; null where it is empty.

    None for a column that stays as it is, such as numbers.
    """
    text = pl.col(column)
    if isinstance(kind, pl.List):
        if column not in _TEXT:
            texts = text.cast(pl.List(pl.String))
            empty = texts.list.join("").str.strip_chars() == ""
            return pl.when(~empty).then(texts) if kind.inner in (pl.String, pl.Null) else None
        text = text.cast(pl.List(pl.String)).list.join(", ")
    elif kind != pl.String:
        if column not in _TEXT or kind == pl.Null:
            return None
        text = text.cast(pl.String)
    if column in _TEXT:
        text = text.map_elements(_clean, return_dtype=pl.String)
    return pl.when(text.str.strip_chars() != "").then(text).alias(column)


def _clean(text: str) -> str:
    """HTML entities resolved, whitespace folded. Entities in the wild are escaped up to twice."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


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
    if not table.height:
        return None
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
        "without_title": items.height - present.get("title", 0),
        "relations": related.height,
        "columns": present,
    }


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise DataError(f"{out} is already there.", "Choose another --out or replace it with --force.")
    try:
        ours = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{out} is no dataset directory and is not replaced.", "Choose another --out.")


def _write(tables: Mapping[str, pl.DataFrame], out: Path, base: Path, about: Mapping[str, Any]) -> Catalog:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{out} cannot be made: {error.strerror}.", "Choose another --out.") from error
    try:
        for table, frame in tables.items():
            # Through memory: Polars tells of a full disk in words only, without an error number.
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            _put(temp / f"{table}.parquet", buffer.getbuffer())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "earec": earec_core.__version__,
            "base": os.path.relpath(base.resolve(), out.resolve()),
            "counts": _counts(tables["items"], tables["interactions"], tables["relations"]),
            "digests": {table: file_digest(temp / f"{table}.parquet") for table in tables},
            "digest": content_digest(tables),
        }
        _put(temp / "manifest.json", json.dumps(manifest, indent=1).encode())
        temp.chmod(0o755)
        _replace(temp, out)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return Catalog.open(out)


def _put(file: Path, content: bytes | memoryview) -> None:
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _replace(temp: Path, out: Path) -> None:
    """Move a finished folder into the place of the one that is there, if any."""
    if not out.exists():
        temp.rename(out)
        return
    old = out.with_name(f"{temp.name}-old")
    out.rename(old)
    try:
        temp.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "catalog"
