"""A source's interactions filtered, in time order, and by the rows of their users and items."""

from __future__ import annotations

import polars as pl

from earec_core.catalog.formats.columns import Table, check_scalar, named
from earec_core.catalog.formats.files import several
from earec_core.catalog.formats.lines import shown
from earec_core.errors import DataError

_ROW = "_row"


def filtered(source: Table, *, core: int, min_rating: float | None, max_len: int | None) -> pl.DataFrame:
    """Filtered and in time order; equal timestamps keep the source's order.

    Rows with the user, item and timestamp of an earlier row count once; coming back to an item later counts.
    """
    have = source.rows.columns
    ids = [named(source.rows, column) for column in ("user_id", "item_id")]
    table = source.rows.select(*ids, *(name for name in ("timestamp", "rating") if name in have))
    table = table.with_row_index(_ROW).drop_nulls(["user_id", "item_id"])
    if min_rating is not None:
        if "rating" not in have:
            raise DataError(
                f"The interactions have no rating; they have {several(have)}.",
                "Leave out --min-rating, or say which column it is: --column rating=SOURCE",
            )
        table = table.filter(_ratings(table, source) >= min_rating)
    table = _timed(table, source).unique(
        ["user_id", "item_id", "timestamp"], keep="first", maintain_order=True
    )
    table = k_core(table, core)
    # Users in the order of their first row in the source; sorts are stable.
    firsts = table.select("user_id").unique(maintain_order=True).with_row_index("_user")
    table = table.join(firsts, on="user_id", maintain_order="left").sort(
        "_user", "timestamp", maintain_order=True
    )
    if max_len is not None:
        # Lengths are unsigned, so that less than nothing would be very much.
        length = pl.len().over("user_id").cast(pl.Int64)
        table = table.filter(pl.int_range(pl.len()).over("user_id") >= length - max_len)
    return table.select("user_id", "item_id", "timestamp")


def by_row(interactions: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Interactions by the rows of their users and items."""
    users = interactions.select("user_id").unique(maintain_order=True).with_row_index("user")
    return (
        interactions.join(rows, on="item_id", maintain_order="left")
        .join(users.cast({"user": pl.Int64}), on="user_id", maintain_order="left")
        .select("user", "user_id", "item", "timestamp")
    )


def k_core(interactions: pl.DataFrame, core: int) -> pl.DataFrame:
    """Interactions whose user and item both have at least `core` of them, to a fixed point, order kept."""
    while True:
        before = interactions.height
        for key in ("user_id", "item_id"):
            interactions = interactions.filter(pl.len().over(key) >= core)
        if interactions.height == before:
            return interactions


def _timed(table: pl.DataFrame, source: Table) -> pl.DataFrame:
    """The time as a number: seconds for dates, else as the source counts; file order where it gives none."""
    if "timestamp" not in table.columns:
        return table.with_columns(timestamp=pl.int_range(pl.len()).cast(pl.Float64))
    time = table["timestamp"]
    if time.dtype == pl.Categorical or time.dtype == pl.Enum:
        time = time.cast(pl.String)
    missing = time.is_null()
    if time.dtype.is_temporal():
        seconds = None if time.dtype == pl.Time else time.dt.timestamp("ms") / 1000
    else:
        seconds = time.cast(pl.Float64, strict=False)
        missing |= ~seconds.is_finite().fill_null(True)
    if missing.any():
        place = source.place(table[_ROW].filter(missing)[0])
        raise DataError(
            f"{missing.sum():,} of {table.height:,} interactions have no timestamp; the first is {place}.",
            "Remove them, or map another column with --column timestamp=SOURCE",
        )
    if time.dtype == pl.String and seconds is not None and seconds.null_count():
        seconds = _dates(time)
    if seconds is None or seconds.null_count():
        wrong = (seconds if seconds is not None else time.clear(len(time))).is_null()
        place, value = source.place(table[_ROW].filter(wrong)[0]), time.filter(wrong)[0]
        raise DataError(
            f"Timestamps are neither numbers nor dates, such as {shown(value)} in {place}.",
            "Mend it, or map another column with --column timestamp=SOURCE",
        )
    return table.with_columns(timestamp=seconds.cast(pl.Float64))


def _dates(time: pl.Series) -> pl.Series:
    """Seconds of dates in ISO form, null where a text is none."""
    try:
        dates = time.str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
    except pl.exceptions.PolarsError:
        # The first text is no date; the pattern of the others is not known then.
        return pl.Series(time.name, [None] * len(time), dtype=pl.Float64)
    return dates.dt.timestamp("ms") / 1000


def _ratings(table: pl.DataFrame, source: Table) -> pl.Series:
    """The ratings as numbers, null where there is none."""
    check_scalar(table, ("rating",), "the interactions")
    ratings = table["rating"]
    numbers = ratings.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() | ~numbers.is_finite()) & ratings.is_not_null()
    if wrong.any():
        place, value = source.place(table[_ROW].filter(wrong)[0]), ratings.filter(wrong)[0]
        raise DataError(
            f"The rating in {place} is {shown(value)}, which is no number.",
            "Mend it, or map another column with --column rating=SOURCE",
        )
    return numbers
