"""A source's interactions filtered, in time order, and by the rows of their users and items."""

from __future__ import annotations

import polars as pl

from earec_core.errors import DataError


def filtered(
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
