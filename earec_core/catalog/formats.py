"""Readers of the source formats: each gives items, interactions and relations under EAREC's column names.

| format       | files                                                                        |
|--------------|------------------------------------------------------------------------------|
| movielens    | 100K (u.data, u.item), 1M (ratings.dat, movies.dat), latest (ratings.csv, movies.csv) |
| amazon-2018  | reviews and meta JSON lines, gzipped or not                                  |
| amazon-2023  | the same with parent_asin, main_category, store, images                      |
| recbole      | atomic files: *.inter and *.item with typed headers                          |
| generic      | items and interactions (and relations) as csv, jsonl or parquet              |
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from earec_core.errors import DataError

RELATION_KINDS = ("bought_together", "also_buy", "also_bought", "also_view", "also_viewed")
"""Relation columns, strongest first."""


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        items: `item_id` and whatever describes an item; text is not cleaned yet.
        interactions: `user_id`, `item_id`, `timestamp` and perhaps `rating`, in the source's order.
        relations: `item_id`, `related_id`, `kind`, in the source's order; None where it gives none.
        base: the folder that relative file paths are relative to.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    relations: pl.DataFrame | None
    base: Path


def detect(source: Path) -> str:
    """The format of a folder, by the files in it.

    Raises:
        DataError: none of the formats' files is there.
    """
    names = {p.name for p in source.iterdir()} if source.is_dir() else set()
    for group in ({"u.data"}, {"ratings.dat"}, {"ratings.csv", "movies.csv"}):
        if group <= names:
            return "movielens"
    if any(name.endswith(".inter") for name in names):
        return "recbole"
    if any(_stem(name) == "items" or _stem(name) == "interactions" for name in names):
        return "generic"
    meta = sorted(name for name in names if "meta" in name.lower() and ".json" in name)
    if meta:
        first = next(_json_lines(source / meta[0]), {})
        return "amazon-2023" if "parent_asin" in first else "amazon-2018"
    raise DataError(
        f"{source} holds no files of a known format.",
        "Name it with --format (movielens, amazon-2018, amazon-2023, recbole, generic); see docs/data.md.",
    )


def read(source: Path, format: str, columns: Mapping[str, str]) -> Source:  # noqa: A002 - the option's name
    """Read a source in a named format.

    Args:
        columns: EAREC's column names to the source's; several alternatives are separated by `|`.

    Raises:
        DataError: unknown format, missing or unreadable file, missing column.
    """
    if format not in READERS:
        raise DataError(f"There is no format {format!r}.", f"Choose one of: {', '.join(READERS)}.")
    if not source.is_dir():
        raise DataError(f"{source} is no folder.", "Give the folder that holds the source's files.")
    return READERS[format](source, columns)


def _movielens(source: Path, columns: Mapping[str, str]) -> Source:
    ratings = ["user_id", "item_id", "rating", "timestamp"]
    if (source / "u.data").exists():
        inter = _csv(source / "u.data", separator="\t", names=ratings)
        genres = _ML100K_GENRES
        raw = _delimited(source / "u.item", "|", 5 + len(genres))
        flags = [[g for g, on in zip(genres, row[5:], strict=True) if on == "1"] for row in raw]
        rows = [(r[0], r[1], ", ".join(f)) for r, f in zip(raw, flags, strict=True)]
        items = pl.DataFrame(rows, schema=["item_id", "title", "category"], orient="row")
    elif (source / "ratings.dat").exists():
        inter = pl.DataFrame(_delimited(source / "ratings.dat", "::", 4), schema=ratings, orient="row")
        raw = _delimited(source / "movies.dat", "::", 3)
        items = pl.DataFrame(raw, schema=["item_id", "title", "category"], orient="row").with_columns(
            pl.col("category").str.replace_all("|", ", ", literal=True)
        )
    else:
        inter = _table(_one_of(source, "ratings")).rename({"userId": "user_id", "movieId": "item_id"})
        items = _table(_one_of(source, "movies")).rename({"movieId": "item_id", "genres": "category"})
        items = items.with_columns(pl.col("category").str.replace_all("|", ", ", literal=True))
    items = _mapped(items, columns, source, ("item_id",))
    return Source(items, _mapped(inter, columns, source, ("user_id", "item_id")), None, source)


def _amazon(source: Path, columns: Mapping[str, str]) -> Source:
    meta_file = _containing(source, "meta", "")
    review_file = _containing(source, "", "meta")
    items, related = [], []
    for row in _json_lines(meta_file):
        item = row.get("parent_asin") or row.get("asin")
        if item is None:
            raise DataError(f"{meta_file} has a row without asin.", "Give the metadata file of the data set.")
        category = (
            row.get("category") or row.get("categories") or row.get("main_cat") or row.get("main_category")
        )
        items.append(
            {
                "item_id": item,
                "title": row.get("title"),
                "description": _joined(row.get("description"), " "),
                "category": _joined(_flat(category), ", "),
                "brand": row.get("brand") or row.get("store"),
                "image": _first_image(row),
            }
        )
        given = {**(row.get("related") or {}), **row}
        for kind in RELATION_KINDS:
            related += [(item, other, kind) for other in given.get(kind) or () if isinstance(other, str)]
    reviews = [
        (
            row.get("reviewerID") or row.get("user_id"),
            row.get("parent_asin") or row.get("asin"),
            row.get("overall", row.get("rating")),
            row.get("unixReviewTime", row.get("timestamp")),
        )
        for row in _json_lines(review_file)
    ]
    inter = pl.DataFrame(
        reviews, schema=["user_id", "item_id", "rating", "timestamp"], orient="row", infer_schema_length=None
    )
    relations = pl.DataFrame(related, schema=["item_id", "related_id", "kind"], orient="row")
    table = pl.DataFrame(items, infer_schema_length=None)
    return Source(_mapped(table, columns, meta_file, ("item_id",)), inter, relations, source)


def _recbole(source: Path, columns: Mapping[str, str]) -> Source:
    inter_file, item_file = (_ending(source, ending) for ending in (".inter", ".item"))
    items = _atomic(item_file) if item_file is not None else pl.DataFrame({"item_id": []})
    if inter_file is None:
        raise DataError(f"{source} has no .inter file.", "Give a folder of RecBole atomic files.")
    guessed = dict(columns)
    for ours, theirs in (("title", ("movie_title", "item_name")), ("category", ("class", "categories"))):
        found = [name for name in theirs if name in items.columns]
        if ours not in guessed and ours not in items.columns and found:
            guessed[ours] = found[0]
    inter = _mapped(_atomic(inter_file), columns, inter_file, ("user_id", "item_id"))
    return Source(_mapped(items, guessed, item_file or source, ("item_id",)), inter, None, source)


def _generic(source: Path, columns: Mapping[str, str]) -> Source:
    file = _one_of(source, "items")
    items = _mapped(_table(file), columns, file, ("item_id",))
    found = _find(source, "interactions")
    if found is None:
        empty = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
        return Source(items, pl.DataFrame(schema=empty), None, source)
    inter = _mapped(_table(found), columns, found, ("user_id", "item_id"))
    file = _find(source, "relations")
    if file is None:
        return Source(items, inter, None, source)
    table = _mapped(_table(file), {}, file, ("item_id",))
    other = next((c for c in ("related_id", "related_item_id", "related") if c in table.columns), None)
    if other is None:
        raise DataError(f"{file} has no column related_id.", "Name the related item's column related_id.")
    kind = pl.col("kind") if "kind" in table.columns else pl.lit("related")
    return Source(
        items, inter, table.select("item_id", pl.col(other).alias("related_id"), kind.alias("kind")), source
    )


READERS: Mapping[str, Callable[[Path, Mapping[str, str]], Source]] = {
    "movielens": _movielens,
    "amazon-2018": _amazon,
    "amazon-2023": _amazon,
    "recbole": _recbole,
    "generic": _generic,
}

_ML100K_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "item_id": ("itemId", "movieId", "asin", "parent_asin", "id"),
    "user_id": ("userId", "user", "reviewerID"),
    "timestamp": ("time", "date", "position", "unixReviewTime"),
    "title": ("name",),
    "description": ("text", "abstract|overview|plot"),
    "category": ("genres", "categories", "product_type"),
}
"""Where a column of EAREC's name is missing, these are taken; `a|b` means the first that is not empty."""


def _mapped(
    table: pl.DataFrame, columns: Mapping[str, str], file: Path, needed: Sequence[str]
) -> pl.DataFrame:
    """The table under EAREC's column names: as told by `columns`, else by name or synonym."""
    have = table.columns
    made = []
    for ours, theirs in columns.items():
        parts = theirs.split("|")
        if all(part in have for part in parts):
            made.append(_coalesced(table, parts).alias(ours))
    done = {expression.meta.output_name() for expression in made}
    for ours, names in _SYNONYMS.items():
        if ours in done or ours in have:
            continue
        for name in names:
            parts = [part for part in name.split("|") if part in have]
            if parts:
                made.append(_coalesced(table, parts).alias(ours))
                break
    table = table.with_columns(made)
    for name in needed:
        if name not in table.columns:
            raise DataError(
                f"{file} has no column {name}; it has {', '.join(have)}.",
                f"Say which it is: --column {name}=SOURCE",
            )
    return table


def check_columns(columns: Mapping[str, str], source: Source) -> None:
    """Refuse a `--column` that fits no table of the source."""
    have = [*source.items.columns, *source.interactions.columns]
    for ours, theirs in columns.items():
        missing = [part for part in theirs.split("|") if part not in have]
        if missing:
            raise DataError(
                f"No file of {source.base} has a column {missing[0]!r}, named for {ours}; "
                f"there are {', '.join(dict.fromkeys(have))}.",
                f"Mend --column {ours}={theirs}.",
            )


def _coalesced(table: pl.DataFrame, parts: Sequence[str]) -> pl.Expr:
    if len(parts) == 1:
        return pl.col(parts[0])
    texts = [_text(table, part) for part in parts]
    return pl.coalesce([pl.when(text.str.strip_chars() != "").then(text) for text in texts])


def _text(table: pl.DataFrame, name: str) -> pl.Expr:
    column = pl.col(name)
    if isinstance(table.schema[name], pl.List):
        return column.cast(pl.List(pl.String)).list.join(", ")
    return column.cast(pl.String)


def _table(file: Path) -> pl.DataFrame:
    try:
        if file.suffix == ".parquet":
            return pl.read_parquet(file)
        if file.suffix == ".jsonl":
            return pl.DataFrame(list(_json_lines(file)), infer_schema_length=None)
        return pl.read_csv(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Mend or convert the file.") from error


def _csv(file: Path, *, separator: str, names: Sequence[str]) -> pl.DataFrame:
    try:
        return pl.read_csv(
            file, separator=separator, has_header=False, new_columns=list(names), infer_schema=False
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Check the file.") from error


def _delimited(file: Path, separator: str, width: int) -> list[tuple[str, ...]]:
    """Rows of a Latin-1 file whose separator a CSV reader does not take."""
    if not file.exists():
        raise DataError(f"{file} is missing.", "Give the whole folder of the data set.")
    rows = []
    for number, line in enumerate(file.read_text(encoding="latin-1").splitlines(), 1):
        row = tuple(line.split(separator))
        if len(row) != width:
            raise DataError(f"{file} line {number} has {len(row)} fields, not {width}.", "Mend that line.")
        rows.append(row)
    return rows


def _atomic(file: Path) -> pl.DataFrame:
    """A RecBole atomic file: tab-separated, header `name:type`."""
    try:
        table = pl.read_csv(file, separator="\t", quote_char=None, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Check the file.") from error
    made = []
    for header in table.columns:
        name, _, kind = header.partition(":")
        if not kind:
            raise DataError(
                f"{file}: the header {header!r} has no type.", "Write name:token, name:float, ..."
            )
        made.append(
            pl.col(header).cast(pl.Float64).alias(name) if kind == "float" else pl.col(header).alias(name)
        )
    return table.select(made)


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
    number = 0
    try:
        with opened as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield json.loads(line)
    except ValueError as error:
        raise DataError(f"{file} line {number} is not JSON: {error}.", "Mend or remove that line.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read after line {number}: {error}.", "Get the file again."
        ) from error


def _stem(name: str) -> str:
    for ending in (".csv", ".jsonl", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return ""


def _find(source: Path, stem: str) -> Path | None:
    return next((p for p in sorted(source.iterdir()) if _stem(p.name) == stem), None)


def _one_of(source: Path, stem: str) -> Path:
    found = _find(source, stem)
    if found is None:
        raise DataError(
            f"{source} has no {stem}.csv, .jsonl or .parquet.", "Add it or name the format with --format."
        )
    return found


def _ending(source: Path, ending: str) -> Path | None:
    return next((p for p in sorted(source.iterdir()) if p.name.endswith(ending)), None)


def _containing(source: Path, wanted: str, unwanted: str) -> Path:
    for path in sorted(source.iterdir()):
        name = path.name.lower()
        if ".json" in name and wanted in name and not (unwanted and unwanted in name):
            return path
    what = "metadata (meta_*.json.gz)" if wanted else "reviews (*.json.gz)"
    raise DataError(f"{source} has no file of {what}.", "Put reviews and metadata into one folder.")


def _flat(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return value[0]
    return value


def _joined(value: Any, separator: str) -> str | None:
    if isinstance(value, list):
        return separator.join(str(part) for part in value if part) or None
    return str(value) if value else None


def _first_image(row: Mapping[str, Any]) -> str | None:
    for key in ("image", "images", "imageURLHighRes", "imUrl"):
        value = row.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("large") or value.get("thumb")
        if isinstance(value, str) and value:
            return value
    return None
