"""`earec data import`: a source to a dataset directory."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

import earec_core
from earec_core.catalog import formats
from earec_core.catalog.dataset import FORMAT, VERSION, Catalog, content_digest
from earec_core.catalog.formats.columns import named
from earec_core.catalog.formats.files import left_out, reason, several
from earec_core.catalog.interactions import Interactions, filtered
from earec_core.catalog.items import cleaned
from earec_core.catalog.relations import Relations, choose_relations
from earec_core.errors import DataError
from earec_core.files import replacing_directory, sha256, write_atomic, write_json

_REST = 3600
"""Seconds."""


def import_dataset(
    source: str | Path,
    out: str | Path,
    *,
    format: str = "auto",  # noqa: A002 - the option's name
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    domain: str | None = None,
    core: int = 5,
    min_rating: float | None = None,
    max_len: int | None = None,
    relations: Relations = "auto",
    allow_outside: bool = False,
    force: bool = False,
) -> Catalog:
    """Import a catalog and write it as a dataset directory, complete or not at all.

    Args:
        source: the folder of the source's files.
        out: the dataset directory to be made.
        format: a key of `formats.FORMATS`, or `auto`.
        columns: EAREC's column names to the source's, `a|b` for the first that is not empty.
        name: the catalog's name; default: the name of `out`.
        domain: what prompts call the items' kind where a template says `{domain}`; default: the catalog's name.
        core: users and items with fewer interactions are dropped, until none is left (5 in the paper); 0 keeps the
            items that nobody has chosen yet.
        min_rating: interactions rated lower are dropped.
        max_len: each user's most recent interactions, at most; applied last.
        relations: given by the source, derived from co-occurrence in training sequences, none, or `auto`:
            given where there are any, else derived.
        allow_outside: whether columns may name files outside `source`, to be read and shown in reports.
        force: replace the dataset directory that is there.

    Raises:
        DataError: see `formats`; also nothing left after filtering, no title at all, `out` in the way.
        OSError: the disk is full; `out` is as it was.
    """
    source, out = Path(source), Path(out)
    check_out(out, force)
    name = _slug(name or out.name)
    domain = _domain(domain, name)
    if not source.is_dir():
        raise DataError(f"{source} is no folder.", "Give the folder that holds the source's files.")
    format = formats.detect(source) if format == "auto" else format  # noqa: A001 - the option's name
    with _one_sentence(source):
        read = formats.read(source, format, columns or {})
        formats.check_columns(columns or {}, read)
        left = filtered(read.interactions, core=core, min_rating=min_rating, max_len=max_len)
        items = cleaned(read, left.item_ids, unused=not core)
        _check_left(read, items, left, core)
        rows = items.select("item_id").with_row_index("item").cast({"item": pl.Int64})
        interactions = left.by_row(rows)
        relations, related = choose_relations(relations, read, interactions, rows)
    options = {"format": format, "core": core, "min_rating": min_rating, "max_len": max_len}
    options |= {"relations": relations, "columns": dict(columns or {}), "allow_outside": allow_outside}
    tables = {"items": items, "interactions": interactions, "relations": related}
    about = {"name": name, "domain": domain, "options": options, **_used(source, read, items, left)}
    return write_dataset(tables, out, read.base, about, replace=force)


def _domain(domain: str | None, name: str) -> str:
    """What a prompt calls the items' kind."""
    if domain is None:
        return name
    if not (domain := domain.strip()) or len(domain.splitlines()) > 1 or set("{}") & set(domain):
        raise DataError(
            f"A domain is a few words, not {domain!r}.", "Say what the items are: --domain 'office products'"
        )
    return domain


@contextmanager
def _one_sentence(source: Path) -> Iterator[None]:
    """Polars' errors about a source's values as DataError."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(
            f"{source} cannot be imported: {reason(error)}.", "Give each column one kind of plain values."
        ) from error


def _check_left(source: formats.Source, items: pl.DataFrame, left: Interactions, core: int) -> None:
    """Raises DataError when nothing is left to work with."""
    count = source.interactions.rows.height
    if count and not len(left):
        raise DataError(
            f"None of {source.base}'s {count:,} interactions is left after {core}-core filtering.",
            "Lower --core or --min-rating, or check that the columns are the right ones.",
        )
    if not items.height:
        raise DataError(f"The catalog {source.base} is empty.", "Check the files.")
    if "title" not in items.columns or items["title"].null_count() == items.height:
        raise DataError(
            f"No item of {source.base} has a title; columns: {several(items.columns)}.",
            "Say which column it is: --column title=SOURCE",
        )


def _used(source: Path, read: formats.Source, items: pl.DataFrame, left: Interactions) -> dict[str, Any]:
    """What of the source went into the catalog, and how much did not."""
    offered = read.items.rows.select(named(read.items.rows, "item_id")).unique()
    return {
        "source": source.name,
        "files": {"read": [file.name for file in read.files], "left": left_out(source, read.files)},
        "removed": left.removed,
        "unused_items": offered.join(items, on="item_id", how="anti").height,
    }


def _counts(items: pl.DataFrame, interactions: pl.DataFrame, relations: pl.DataFrame) -> dict[str, Any]:
    """The counts of the paper's Table 1, and how many items have each column."""
    users = interactions["user"].n_unique()
    present = {name: items[name].count() for name in items.columns if name != "item_id"}
    return {
        "users": users,
        "items": items.height,
        "interactions": interactions.height,
        "average_length": round(interactions.height / users, 2) if users else 0.0,
        "without_title": items.height - present.get("title", 0),
        "relations": relations.height,
        "columns": present,
    }


def check_out(out: Path, force: bool) -> None:
    """Raises DataError where `out` is there and is not to be replaced, or is no dataset directory."""
    if not out.exists():
        return
    if not force:
        raise DataError(f"{out} is already there.", "Choose another --out or replace it with --force.")
    try:
        manifest = out / "manifest.json"
        format_ = json.loads(manifest.read_text(encoding="utf-8"))["format"] if manifest.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        format_ = None
    if format_ != FORMAT:
        raise DataError(f"{out} is no dataset directory and is not replaced.", "Choose another --out.")


def write_dataset(
    tables: Mapping[str, pl.DataFrame], out: Path, base: Path, about: Mapping[str, Any], *, replace: bool
) -> Catalog:
    """Write tables as a dataset directory, complete or not at all, and open it.

    Args:
        tables: `items`, `interactions`, `relations`.
        base: the folder that files are named from.
        about: `name`, `source`, `options`, `files` and whatever else the manifest has.
        replace: put it in the place of what is there.

    Raises:
        DataError: `out` cannot be made.
        OSError: the disk is full; `out` is as it was.
    """
    try:
        with replacing_directory(out, replace=replace) as folder:
            for name, table in tables.items():
                # Through memory: Polars tells of a full disk in words only, without an error number.
                buffer = io.BytesIO()
                table.write_parquet(buffer)
                write_atomic(folder / f"{name}.parquet", buffer.getvalue())
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                **about,
                "earec": earec_core.__version__,
                "base": os.path.relpath(base.resolve(), out.resolve()),
                "counts": _counts(**tables),
                "digests": {name: sha256(folder / f"{name}.parquet") for name in tables},
                "digest": content_digest(tables),
            }
            write_json(folder / "manifest.json", manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{out} cannot be made: {error.strerror}.", "Choose another --out.") from error
    _clear_leftovers(out)
    return Catalog.open(out)


def _clear_leftovers(out: Path) -> None:
    """Remove what killed imports to `out` left beside it; writing takes seconds, so an hour's rest tells them."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.tmp")
    for path in out.parent.iterdir():
        with suppress(OSError):
            if pattern.fullmatch(path.name) and path.stat().st_mtime < time.time() - _REST:
                shutil.rmtree(path)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "catalog"
