"""A source's items: those that interactions are with, one text in each text column."""

from __future__ import annotations

import html
import re

import polars as pl

from earec_core.catalog.formats.columns import Source, named
from earec_core.catalog.formats.lines import brief, hollow
from earec_core.errors import DataError

_TEXT = ("title", "description", "category", "brand")


def cleaned(source: Source, used_ids: pl.Series, *, unused: bool = False) -> pl.DataFrame:
    """The items that the filtered interactions are with, all of them where the source has none.

    Args:
        used_ids: of those items, each once.
        unused: whether items that no interaction is with stay as well.
    """
    items = source.items.rows.with_columns(named(source.items.rows, "item_id"))
    missing = items["item_id"].is_null()
    if missing.any():
        place = source.items.place(int(missing.arg_true()[0]))
        raise DataError(
            f"{missing.sum():,} of {items.height:,} items have no item_id; the first is {place}.",
            "Add it or remove those rows.",
        )
    items = items.unique("item_id", keep="first", maintain_order=True)
    if source.interactions.rows.height:
        used = pl.DataFrame({"item_id": used_ids})
        known = items.join(used, on="item_id", how="semi", maintain_order="left")
        unknown = used.join(items, on="item_id", how="anti", maintain_order="left")
        if items.height and used.height and not known.height:
            raise DataError(
                f"No interaction of {source.base} is with one of its items: the interactions' ids are such as "
                f"{used.item(0, 0)!r}, the items' such as {items['item_id'][0]!r}.",
                "Say which column it is: --column item_id=SOURCE",
            )
        items = pl.concat([items if unused else known, unknown], how="diagonal_relaxed")
    for column in _TEXT:
        kind = items.schema.get(column)
        inner = kind.inner if isinstance(kind, pl.List) else kind
        if inner is not None and (inner.is_nested() or inner in (pl.Binary, pl.Duration)):
            raise DataError(
                f"The column {column} of {source.base}'s items holds {brief(kind)}, not texts or lists of texts.",
                f"Flatten it, or name another: --column {column}=SOURCE",
            )
    names = ["item_id", *(name for name in items.columns if name != "item_id")]
    return items.select(
        as_imported(name, items.schema[name]) for name in names if can_hold(items.schema[name])
    )


def can_hold(kind: pl.DataType) -> bool:
    """Whether a column can hold anything: not one of nulls, or of objects without fields."""
    return kind != pl.Null and not hollow(kind)


def as_imported(column: str, kind: pl.DataType) -> pl.Expr:
    """A text column as one text a row, null where it is empty; other texts and lists of texts as they are.

    What holds no text, such as numbers, stays as it is.
    """
    cell = pl.col(column)
    if column not in _TEXT and isinstance(kind, pl.List):
        if kind.inner not in (pl.String, pl.Null):
            return cell
        texts = cell.cast(pl.List(pl.String))
        return pl.when(texts.list.join("").str.strip_chars() != "").then(texts)
    if column not in _TEXT and kind != pl.String:
        return cell
    if isinstance(kind, pl.List):
        cell = cell.cast(pl.List(pl.String)).list.join(", ")
    text = cell.cast(pl.String)
    if column in _TEXT:
        text = text.map_elements(_clean, return_dtype=pl.String)
    return pl.when(text.str.strip_chars() != "").then(text).alias(column)


def _clean(text: str) -> str:
    """HTML entities resolved, whitespace folded. Entities in the wild are escaped up to twice."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
