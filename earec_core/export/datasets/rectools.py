"""A dataset as tables that RecTools' `Dataset.construct` takes (https://rectools.readthedocs.io).

- `train.parquet`, `valid.parquet`, `test.parquet`: `user_id`, `item_id`, `weight` (1) and `datetime`, by user in
  time order.
- `item_features.parquet`: `id` and a column for each number of an item's vector, every item of the catalog.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from earec_core.catalog import Catalog
from earec_core.errors import UsageError
from earec_core.export.datasets.base import DatasetExport

_LATEST = 2**63 / 1e9
"""Seconds since 1970 that pandas' times in nanoseconds reach, in the year 2262."""


def write_rectools(export: DatasetExport, folder: Path) -> None:
    """Write a dataset as tables for RecTools.

    Raises:
        UsageError: histories are to be cut.
    """
    catalog, vectors = export.catalog, export.vectors
    if export.max_len is not None:
        raise UsageError(
            "RecTools takes whole sequences and cuts them itself.",
            "Leave --max-len out, and set session_max_len of its model.",
        )
    table = catalog.interactions.select(
        "user_id",
        catalog.items["item_id"][catalog.interactions["item"].cast(pl.UInt32)],
        weight=pl.lit(1.0, dtype=pl.Float32),
        datetime=pl.from_epoch(pl.Series("datetime", _times(catalog)), time_unit="us"),
    )
    for part, rows in _parts(catalog).items():
        table[rows].write_parquet(folder / f"{part}.parquet")
    if vectors is not None:
        columns = {f"v{column}": values for column, values in enumerate(vectors.T)}
        features = pl.DataFrame({"id": catalog.items["item_id"], **columns})
        features.write_parquet(folder / "item_features.parquet")


def _times(catalog: Catalog) -> Int[np.ndarray, " m"]:
    """Microseconds since 1970 of each interaction, no two of a user the same, in the order of the sequence.

    The source's numbers are seconds, or milli-, micro- or nanoseconds where seconds would be past 2262.
    """
    seconds = catalog.interactions["timestamp"].to_numpy()
    while np.abs(seconds).max(initial=0) > _LATEST:
        seconds = seconds / 1000
    place = pl.int_range(pl.len())
    # A time is at least one more than that before it: the largest so far of time less place, plus place.
    raised = ((pl.col("time") - place).cum_max() + place).over("user")
    time = np.round(seconds * 1e6).astype(np.int64)
    times = pl.DataFrame({"user": catalog.interactions["user"], "time": time})
    return times.select(raised)["time"].to_numpy()


def _parts(catalog: Catalog) -> dict[str, Int[np.ndarray, " _"]]:
    """Rows of the interactions in each part of the leave-one-out split."""
    sequences, split = catalog.sequences(), catalog.leave_one_out()
    trained = np.repeat(np.diff(split.train.offsets), np.diff(sequences.offsets))
    place = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], np.diff(sequences.offsets))
    later = place - trained
    return {
        "train": np.flatnonzero(later < 0),
        "valid": np.flatnonzero(later == 0),
        "test": np.flatnonzero(later == 1),
    }
