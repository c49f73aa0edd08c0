"""A source's interactions filtered, in time order, and by the rows of their users and items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

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
    table = _timed(table, source)
    coded = _Coded.of(table).once_each().core(core).by_user()
    if max_len is not None:
        coded = coded.recent(max_len)
    return table.select("user_id", "item_id", "timestamp")[coded.rows]


@dataclass(frozen=True)
class _Coded:
    """Interactions as numbers: strings are compared once, not in every step.

    Attributes:
        rows: of the table that they come from.
        users, items: a number for each id.
        times: seconds.
    """

    rows: Int[np.ndarray, " n"]
    users: Int[np.ndarray, " n"]
    items: Int[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, table: pl.DataFrame) -> _Coded:
        """All interactions of a table, by user in time order; equal times keep the table's order."""
        users, items = (
            table[column].cast(pl.Categorical).to_physical().to_numpy() for column in ("user_id", "item_id")
        )
        times = table["timestamp"].to_numpy()
        order = np.lexsort((times, users))
        return cls(order, users[order], items[order], times[order])

    def once_each(self) -> _Coded:
        """Without those that repeat the user, item and time of an earlier one."""
        again = (self.users[1:] == self.users[:-1]) & (self.times[1:] == self.times[:-1])
        together = np.zeros(len(self.rows), dtype=bool)
        together[1:] |= again
        together[:-1] |= again
        places = np.flatnonzero(together)
        group = np.cumsum(np.concatenate([[True], ~again]))[places] if len(places) else places
        # Among those of one user and time the first of each item stays.
        order = np.lexsort((self.items[places], group))
        group, items = group[order], self.items[places][order]
        repeats = np.concatenate([[False], (group[1:] == group[:-1]) & (items[1:] == items[:-1])])[
            : len(places)
        ]
        kept = np.ones(len(self.rows), dtype=bool)
        kept[places[order[repeats]]] = False
        return self._only(kept)

    def core(self, core: int) -> _Coded:
        """Those whose user and item both have at least `core` of them, to a fixed point."""
        kept = np.ones(len(self.rows), dtype=bool)
        while True:
            before = np.count_nonzero(kept)
            for ids in (self.users, self.items):
                kept &= np.bincount(ids[kept], minlength=ids.max(initial=0) + 1)[ids] >= core
            if np.count_nonzero(kept) == before:
                return self._only(kept)

    def by_user(self) -> _Coded:
        """Users in the order of their first row in the table, each in time order."""
        first = np.full(self.users.max(initial=0) + 1, len(self.rows) and self.rows.max() + 1)
        np.minimum.at(first, self.users, self.rows)
        return self._only(np.argsort(first[self.users], kind="stable"))

    def recent(self, most: int) -> _Coded:
        """Each user's most recent ones, by user in time order as they are."""
        ends = np.flatnonzero(np.concatenate([self.users[1:] != self.users[:-1], [True]]))
        end = np.repeat(ends, np.diff(ends, prepend=-1)) if len(self.rows) else ends
        return self._only(end - np.arange(len(self.rows)) < most)

    def _only(self, places: np.ndarray) -> _Coded:
        return _Coded(self.rows[places], self.users[places], self.items[places], self.times[places])


def by_row(interactions: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Interactions by the rows of their users and items."""
    users = interactions.select("user_id").unique(maintain_order=True).with_row_index("user")
    return (
        interactions.join(rows, on="item_id", maintain_order="left")
        .join(users.cast({"user": pl.Int64}), on="user_id", maintain_order="left")
        .select("user", "user_id", "item", "timestamp")
    )


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
