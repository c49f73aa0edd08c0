"""Readers of the source formats: each gives items, interactions and relations under EAREC's column names.

| format       | files                                                                        |
|--------------|------------------------------------------------------------------------------|
| movielens    | 100K (u.data, u.item), 1M (ratings.dat, movies.dat), latest (ratings.csv, movies.csv) |
| amazon-2018  | reviews and meta JSON lines, gzipped or not                                  |
| amazon-2023  | the same with parent_asin, main_category, store, images                      |
| recbole      | atomic files: *.inter and *.item with typed headers                          |
| generic      | items, perhaps interactions and relations, as csv, jsonl (.gz) or parquet    |
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
    names = {p.name for p in source.iterdir()}
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
    return READERS[format](source, columns)


def _movielens(source: Path, columns: Mapping[str, str]) -> Source:
    ratings = ("user_id", "item_id", "rating", "timestamp")
    if (source / "u.data").exists():
        inter_file, item_file = source / "u.data", source / "u.item"
        inter = _delimited(inter_file, "\t", ratings)
        head = ("item_id", "title", "release_date", "video_date", "imdb")
        items = _delimited(item_file, "|", [*head, *_ML100K_GENRES])
        flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in _ML100K_GENRES]
        category = pl.concat_str(flags, separator=", ", ignore_nulls=True).alias("category")
        items = items.select("item_id", "title", "release_date", category)
    elif (source / "ratings.dat").exists():
        inter_file, item_file = source / "ratings.dat", source / "movies.dat"
        inter = _delimited(inter_file, "::", ratings)
        items = _delimited(item_file, "::", ("item_id", "title", "genres"))
    else:
        inter_file, item_file = _one_of(source, "ratings"), _one_of(source, "movies")
        inter, items = _table(inter_file, columns), _table(item_file, columns)
    inter = _mapped(inter, columns, inter_file, ("user_id", "item_id"))
    items = _mapped(items, columns, item_file, ("item_id",))
    if "category" in items.columns:
        genres = pl.col("category").str.replace_all("|", ", ", literal=True)
        items = items.with_columns(pl.when(genres != "(no genres listed)").then(genres).alias("category"))
    return Source(items.drop("genres", strict=False), inter, None, source)


def _amazon(source: Path, columns: Mapping[str, str]) -> Source:
    meta_file = _containing(source, "meta", "")
    review_file = _containing(source, "", "meta")
    items, related = [], []
    for row in _json_lines(meta_file):
        item = row.get("parent_asin") or row.get("asin")
        if item is None:
            raise DataError(f"{meta_file} has a row without asin.", "Give the metadata file of the data set.")
        title = row.get("title")
        category = (
            row.get("category") or row.get("categories") or row.get("main_cat") or row.get("main_category")
        )
        made = {
            "item_id": item,
            # Some pages of 2018 were not parsed: their titles are the page's scripts.
            "title": None if "getTime" in str(title) else title,
            "description": _joined(row.get("description"), " "),
            "category": _joined(_flat(category), ", "),
            "brand": row.get("brand") or row.get("store"),
            "image": _first_image(row),
        }
        given = {**(row.get("related") or {}), **row}
        more = {
            k: _joined(v, ", ")
            for k, v in row.items()
            if k not in made and k not in _AMAZON_LEFT_OUT and _plain(v)
        }
        items.append(made | more)
        for kind in RELATION_KINDS:
            related += [(item, other, kind) for other in given.get(kind) or () if isinstance(other, str)]
    inter = _reviews(review_file)
    relations = pl.DataFrame(
        related, schema=dict.fromkeys(("item_id", "related_id", "kind"), pl.String), orient="row"
    )
    table = _frame(items, meta_file)
    return Source(_mapped(table, columns, meta_file, ("item_id",)), inter, relations, source)


def _reviews(file: Path) -> pl.DataFrame:
    """Reviews of either year, read by Polars: full files have tens of millions of them."""
    schema = {
        **dict.fromkeys(("reviewerID", "user_id", "asin", "parent_asin"), pl.String),
        **dict.fromkeys(("overall", "rating"), pl.Float64),
        **dict.fromkeys(("unixReviewTime", "timestamp"), pl.Int64),
    }
    try:
        table = pl.read_ndjson(file, schema=schema)
    except (pl.exceptions.PolarsError, OSError) as error:
        for _ in _json_lines(file):  # Polars names no line; this finds it.
            pass
        raise DataError(f"{file} cannot be read: {_why(error)}.", "Get the file again.") from error
    table = table.select(
        pl.coalesce("reviewerID", "user_id").alias("user_id"),
        pl.coalesce("parent_asin", "asin").alias("item_id"),
        pl.coalesce("overall", "rating").alias("rating"),
        pl.coalesce("unixReviewTime", "timestamp").alias("timestamp"),
    )
    for column, names in (("user_id", "reviewerID or user_id"), ("item_id", "asin or parent_asin")):
        if table.height and table[column].null_count() == table.height:
            raise DataError(f"{file} has no column {names}.", "Give the reviews of the data set.")
    return table


def _recbole(source: Path, columns: Mapping[str, str]) -> Source:
    inter_file, item_file = (_ending(source, ending) for ending in (".inter", ".item"))
    items = pl.DataFrame(schema={"item_id": pl.String}) if item_file is None else _atomic(item_file)
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
    items = _mapped(_table(file, columns), columns, file, ("item_id",))
    found = _find(source, "interactions")
    if found is None:
        empty = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
        return Source(items, pl.DataFrame(schema=empty), None, source)
    inter = _mapped(_table(found, columns), columns, found, ("user_id", "item_id"))
    related = _find(source, "relations")
    if related is None:
        return Source(items, inter, None, source)
    table = _mapped(_table(related, {}), {}, related, ("item_id",))
    other = next((c for c in _RELATED if c in table.columns), None)
    if other is None:
        raise DataError(
            f"{related} has no column related_id; it has {', '.join(table.columns)}.",
            "Name the related item's column related_id.",
        )
    _check_scalar(table, (other, "kind"), related)
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

# fmt: off
_ML100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
_IMAGE_KEYS = ("image", "images", "imageURLHighRes", "imageURL", "imUrl")
_AMAZON_LEFT_OUT = frozenset(
    [
        *RELATION_KINDS,
        *_IMAGE_KEYS,
        "related",
        "asin",
        "parent_asin",
        "categories",
        "similar_item",
        "tech1",
        "tech2",
    ]
)
"""Relations, which have a table of their own; what another column holds already; pieces of HTML."""
_USE = ("timestamp", "rating")
_RELATED = ("related_id", "related_item_id", "related")
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "item_id": ("itemId", "movieId", "asin", "parent_asin", "id"),
    "user_id": ("userId", "user", "reviewerID"),
    "timestamp": ("time", "date", "position", "unixReviewTime"),
    "title": ("name",),
    "description": ("text", "abstract|overview|plot"),
    "category": ("genres", "categories", "product_type"),
}
"""Where a column of EAREC's name is missing, these are taken; `a|b` means the first that is not empty."""
_AS_TEXT = ("user_id", "item_id", "title", "description", "category", "brand")


def _mapped(
    table: pl.DataFrame, columns: Mapping[str, str], file: Path, needed: Sequence[str]
) -> pl.DataFrame:
    """The table under EAREC's column names: as told by `columns`, else by name or synonym."""
    have = table.columns
    if not have:
        raise DataError(f"{file} is empty.", "Check the file.")
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
    _check_scalar(table, (*needed, *_USE) if "user_id" in needed else needed, file)
    return table


def _check_scalar(table: pl.DataFrame, names: Sequence[str], file: Path) -> None:
    for name in names:
        kind = table.schema.get(name)
        if kind is not None and kind.is_nested():
            raise DataError(
                f"The column {name} of {file} holds {kind}, not one value a row.",
                "Give it one value a row.",
            )


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


def _table(file: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """A csv, jsonl or parquet file. Ids and texts stay as they are written: "007" is not 7."""
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return pl.read_parquet(file)
        if name.endswith(".jsonl"):
            return _frame(list(_json_lines(file)), file)
        names = [*_AS_TEXT, *_RELATED]
        for ours in _AS_TEXT:
            told = (*_SYNONYMS.get(ours, ()), columns.get(ours, ""))
            names += [part for name in told for part in name.split("|")]
        have = pl.read_csv(file, n_rows=0).columns
        texts = dict.fromkeys((n for n in have if n in names), pl.String)
        return pl.read_csv(file, infer_schema_length=None, schema_overrides=texts)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {_why(error)}.", "Mend or convert the file.") from error


def _frame(rows: Sequence[Mapping[str, Any]], file: Path) -> pl.DataFrame:
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise DataError(
            f"A column of {file} has values of different kinds: {_why(error)}.", "Give each column one kind."
        ) from error


def _delimited(file: Path, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """A file without header or quotes, in UTF-8 or (the older MovieLens sets) Latin-1."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {_why(error)}.", "Give the whole folder of the data set."
        ) from error
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # By "\n" alone: str.splitlines() also splits at U+0085, which Latin-1 texts contain.
    lines = pl.DataFrame({"line": text.split("\n")}, schema={"line": pl.String}).with_row_index("number", 1)
    fields = pl.col("line").str.strip_chars_end("\r").str.split(separator)
    rows = lines.filter(pl.col("line").str.strip_chars() != "").with_columns(fields)
    wrong = rows.filter(pl.col("line").list.len() != len(names))
    if wrong.height:
        number, row = wrong.row(0)
        raise DataError(f"{file} line {number} has {len(row)} fields, not {len(names)}.", "Mend that line.")
    return rows.select(pl.col("line").list.get(i).alias(name) for i, name in enumerate(names))


def _atomic(file: Path) -> pl.DataFrame:
    """A RecBole atomic file: tab-separated, header `name:type`; a token_seq stays one text."""
    try:
        table = pl.read_csv(file, separator="\t", quote_char=None, infer_schema=False)
        made = []
        for header in table.columns:
            name, _, kind = header.partition(":")
            column = pl.col(header)
            if not kind:
                raise DataError(
                    f"{file}: the header {header!r} has no type.", "Write name:token, name:float, ..."
                )
            if kind == "float":
                column = column.cast(pl.Float64)
            elif kind == "float_seq":
                column = column.str.split(" ").cast(pl.List(pl.Float64))
            made.append(column.alias(name))
        return table.select(made)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read: {_why(error)}.", "Check the file.") from error


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"{type(row).__name__} instead of an object")
                    yield row
    except UnicodeDecodeError:
        raise DataError(f"{file} line {number} is not UTF-8.", "Convert the file to UTF-8.") from None
    except ValueError as error:
        raise DataError(f"{file} line {number} is not JSON: {error}.", "Mend or remove that line.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read after line {number}: {_why(error)}.", "Get the file again."
        ) from error


def _why(error: Exception) -> str:
    """The first sentence of a message; Polars' go on with pages of advice."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _stem(name: str) -> str:
    for ending in (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return ""


def _find(source: Path, stem: str) -> Path | None:
    return next((p for p in sorted(source.iterdir()) if _stem(p.name) == stem), None)


def _one_of(source: Path, stem: str) -> Path:
    found = _find(source, stem)
    if found is None:
        raise DataError(
            f"{source} has no {stem}.csv, .jsonl or .parquet.", "Add it, or name the format with --format."
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


def _plain(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str | int | float) for part in parts)


def _joined(value: Any, separator: str) -> str | None:
    if isinstance(value, list):
        return separator.join(str(part) for part in value if part) or None
    return str(value) if value else None


def _first_image(row: Mapping[str, Any]) -> str | None:
    for key in _IMAGE_KEYS:
        value = row.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("large") or value.get("thumb")
        if isinstance(value, str) and value:
            return value
    return None
