"""A source's interactions filtered, in time order, and by the rows of their users and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from earec_core.catalog.formats.columns import Table, check_scalar, named
from earec_core.catalog.formats.files import several
from earec_core.catalog.formats.lines import shown
from earec_core.errors import DataError

_ROW = "_row"
_SPAN = 1 << 32


@dataclass(frozen=True)
class Interactions:
    """Filtered interactions by user in time order, as numbers: of millions of rows no id is made twice.

    Attributes:
        user_ids, item_ids: those that occur, by first occurrence.
        users, items: where each interaction's are in them.
        times: seconds.
        removed: how many were left out, by the rule that did it.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    users: Int[np.ndarray, " n"]
    items: Int[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]
    removed: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.times)

    def by_row(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The catalog's table `interactions`.

        Args:
            rows: the row `item` of each `item_id`, every one of these among them.
        """
        row = pl.DataFrame({"item_id": self.item_ids}).join(rows, on="item_id", maintain_order="left")["item"]
        return pl.DataFrame(
            {
                "user": pl.Series(self.users).set_sorted(),
                "user_id": self.user_ids.gather(self.users),
                "item": row.to_numpy()[self.items],
                "timestamp": self.times,
            }
        )


def filtered(source: Table, *, core: int, min_rating: float | None, max_len: int | None) -> Interactions:
    """Filtered and in time order; equal timestamps keep the source's order.

    Rows with the user, item and timestamp of an earlier row count once; coming back to an item later counts.
    """
    have = source.rows.columns
    ids = [named(source.rows, column) for column in ("user_id", "item_id")]
    table = source.rows.select(*ids, *(name for name in ("timestamp", "rating") if name in have))
    left = {"read": table.height}
    table = table.with_row_index(_ROW).drop_nulls(["user_id", "item_id"])
    left["without an id"] = table.height
    if min_rating is not None:
        if "rating" not in have:
            raise DataError(
                f"The interactions have no rating; they have {several(have)}.",
                "Leave out --min-rating, or say which column it is: --column rating=SOURCE",
            )
        table = table.filter(_ratings(table, source) >= min_rating)
        left[f"not rated {min_rating:g} or higher"] = table.height
    table = _timed(table, source)
    coded = _Coded.of(table).once_each()
    left["repeated"] = len(coded.rows)
    coded = coded.core(core).by_user()
    left[f"by the {core}-core"] = len(coded.rows)
    if max_len is not None:
        coded = coded.recent(max_len)
        left[f"older than a user's last {max_len}"] = len(coded.rows)
    removed = {
        rule: before - after for (_, before), (rule, after) in pairwise(left.items()) if before > after
    }
    return coded.named(table, removed)


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
        order = _in_order(users, times)
        return cls(order, users[order], items[order], times[order])

    def once_each(self) -> _Coded:
        """Without those that repeat the user, item and time of an earlier one."""
        again = (self.users[1:] == self.users[:-1]) & (self.times[1:] == self.times[:-1])
        if not again.any():
            return self
        together = np.zeros(len(self.rows), dtype=bool)
        together[1:] |= again
        together[:-1] |= again
        places = np.flatnonzero(together)
        group = np.cumsum(np.concatenate([[True], ~again]))[places]
        # Among those of one user and time the first of each item stays.
        order = np.lexsort((self.items[places], group))
        group, items = group[order], self.items[places][order]
        repeats = np.concatenate([[False], (group[1:] == group[:-1]) & (items[1:] == items[:-1])])
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
                return self if before == len(kept) else self._only(kept)

    def by_user(self) -> _Coded:
        """Users in the order of their first row in the table, each in time order."""
        if not len(self.rows):
            return self
        starts, lengths = self._runs()
        order = np.argsort(np.minimum.reduceat(self.rows, starts))
        starts, lengths = starts[order], lengths[order]
        return self._only(
            np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(self.rows))
        )

    def recent(self, most: int) -> _Coded:
        """Each user's most recent ones, by user in time order as they are."""
        starts, lengths = self._runs()
        return self._only(np.repeat(starts + lengths, lengths) - np.arange(len(self.rows)) <= most)

    def named(self, table: pl.DataFrame, removed: Mapping[str, int]) -> Interactions:
        """With their ids, from the table that they come from."""
        starts, lengths = self._runs()
        number, first = _first_of_each(self.items)
        return Interactions(
            table["user_id"].gather(self.rows[starts]),
            table["item_id"].gather(self.rows[first]),
            np.repeat(np.arange(len(starts)), lengths),
            number,
            self.times,
            removed,
        )

    def _runs(self) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " u"]]:
        """Where each user's interactions start, and how many they are."""
        changes = np.flatnonzero(self.users[1:] != self.users[:-1]) + 1
        starts = np.concatenate([[0], changes]) if len(self.users) else changes
        return starts, np.diff(starts, append=len(self.users))

    def _only(self, places: np.ndarray) -> _Coded:
        return _Coded(self.rows[places], self.users[places], self.items[places], self.times[places])


def _in_order(users: Int[np.ndarray, " n"], times: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The order by user, then time; of equals the first is first.

    Of whole seconds within a century, as nearly all are, both fit one number, which sorts three times as fast.
    """
    since = times - times.min(initial=np.inf)
    if not len(times) or since.max() >= _SPAN or (since != np.floor(since)).any():
        return np.lexsort((times, users))
    return np.argsort(users.astype(np.uint64) * _SPAN + since.astype(np.uint64), kind="stable")


def _first_of_each(codes: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """The codes as numbers by first occurrence, and where each number first occurs."""
    first = np.full(int(codes.max(initial=0)) + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(codes))]
    number = np.empty(len(first), dtype=np.int64)
    number[order] = np.arange(len(order))
    return number[codes], first[order]


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
