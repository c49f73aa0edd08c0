"""A user's own table of item vectors (.npy, .safetensors, .parquet), for plugins that take one.

`read_table` checks and digests the file, `VectorEncoder` makes its rows one slot input each.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from earec_core import files
from earec_core.errors import IntegrityError, UsageError
from earec_core.modality.contract import Encoded, Encoder

SUFFIXES = (".npy", ".parquet", ".safetensors")
PIN = "#sha256:"


@dataclass(frozen=True, eq=False)
class Table:
    """Item vectors.

    Attributes:
        origin: the reference that was asked for, for messages.
        values: (n, d); a row of NaN alone stands for an item without vector.
        rows: item id to row; None where the table has no ids.
        pinned: a reference to exactly this content.
        digest: SHA-256 of the file, and of the file of ids.
    """

    origin: str
    values: Float[np.ndarray, "n d"]
    rows: Mapping[str, int] | None
    pinned: str
    digest: str

    @cached_property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Rows that hold a vector."""
        present: np.ndarray = ~np.isnan(self.values).all(1)
        return present

    @cached_property
    def standardised(self) -> Float[np.ndarray, "n d"]:
        """Every dimension with mean 0 and deviation 1 over finite rows; constant ones become 0."""
        finite = self.values[np.isfinite(self.values).all(1)].astype(np.float64)
        deviation = finite.std(0)
        # A constant column's computed deviation is not exactly 0.
        constant = deviation <= 1e-7 * np.abs(finite).max(0, initial=1e-30)
        scaled = (self.values - finite.mean(0)) / np.where(constant, 1, deviation)
        return np.where(constant & np.isfinite(self.values), 0, scaled).astype(np.float32)

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in row order; row numbers where the table has none."""
        return [str(i) for i in range(len(self.values))] if self.rows is None else list(self.rows)


class VectorEncoder(Encoder):
    """Stacks vectors, (b 1 d_enc): what made the table was the encoder.

    Args:
        d_enc: their width.
    """

    _device: Tensor

    def __init__(self, d_enc: int) -> None:
        super().__init__()
        self.d_enc = d_enc
        # Says where the module was moved to; not part of its state.
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def forward(self, batch: Sequence[Float[np.ndarray, " d"]]) -> Encoded:
        h = torch.from_numpy(np.stack(batch)).to(self._device.device)[:, None]
        return Encoded(h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))


def read_table(reference: str, ids: str, setting: str) -> Table:
    """Read the table that a configuration names.

    Args:
        reference: a file; `FILE#sha256:HEX` means exactly that content. A safetensors file holds one tensor, or
            one named as the setting's last word; a Parquet file has the column item_id, and the vector as one
            list column or as numeric columns.
        ids: for .npy and .safetensors, a file of item ids in row order (.json list, .csv, or lines); "" for none.
        setting: the setting's name for messages, e.g. `behavior.embeddings`.

    Raises:
        UsageError: it is not there, not readable, or not a table.
        IntegrityError: a pinned file has changed.
    """
    file, _, pin = reference.partition(PIN)
    path, another = Path(file).expanduser(), f"Give another: --set {setting}=FILE"
    paths = [path, *([Path(ids).expanduser()] if ids else [])]
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{setting}={file} is none of {', '.join(SUFFIXES)}.", another)
    try:
        digest = files.sha256(*paths)
    except OSError as error:
        raise UsageError(
            f"{setting}={file} cannot be read: {error.filename}: {error.strerror}.",
            f"Give a file that is there: --set {setting}=FILE",
        ) from None
    if pin and pin != digest:
        raise IntegrityError(
            f"{file} is not the table that the model was aligned with (sha256:{pin[:12]}…).",
            f"Give it as --set {setting}=FILE to use what it holds now.",
        )
    names: Sequence[str | None] | None
    try:
        names, values = _contents(path, setting.rpartition(".")[2])
        if ids and names is not None:
            raise ValueError(f"it has ids of its own, and {ids} gives others")
        names = _listed(paths[1]) if ids else names
    except (pl.exceptions.PolarsError, SafetensorError, ValueError, EOFError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).rstrip('.')}.", another) from error
    if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise UsageError(
            f"{path} holds {values.dtype} {values.shape}, not a table of numbers (items x dimensions).",
            another,
        )
    rows = None if names is None else _index(names, len(values), file)
    return Table(file, np.ascontiguousarray(values, dtype=np.float32), rows, f"{file}{PIN}{digest}", digest)


def _contents(path: Path, name: str) -> tuple[list[str | None] | None, Any]:
    """Item ids, where the format has them, and the array. Raises ValueError and what the libraries raise."""
    match path.suffix.lower():
        case ".npy":
            values = np.load(path, allow_pickle=False)
            if not isinstance(values, np.ndarray):
                raise ValueError("it is an archive of several arrays")
            return None, values
        case ".safetensors":
            # Through torch: numpy has no bfloat16.
            with safe_open(str(path), framework="pt") as stored:
                keys = list(stored.keys())
                if name not in keys and len(keys) != 1:
                    raise ValueError(f"it holds {len(keys)} tensors, none named {name!r}")
                tensor = stored.get_tensor(name if name in keys else keys[0])
            return None, tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        case _:
            frame = pl.read_parquet(path)
            if "item_id" not in frame.columns:
                raise ValueError(f"it has no column item_id (but {', '.join(frame.columns) or 'none'})")
            return frame["item_id"].cast(pl.String).to_list(), _columns(frame.drop("item_id"))


def _columns(frame: pl.DataFrame) -> Float[np.ndarray, "n d"]:
    lists = [c for c in frame.columns if isinstance(frame[c].dtype, (pl.List, pl.Array))]
    numbers = [c for c in frame.columns if frame[c].dtype.is_numeric()]
    if len(lists) > 1 or not (lists or numbers):
        raise ValueError(
            f"it has {len(lists)} list columns and {len(numbers)} numeric columns beside item_id; give the vector "
            "as one list column, or as numeric columns alone"
        )
    if not lists:
        return frame.select(pl.col(numbers).cast(pl.Float32)).fill_null(np.nan).to_numpy()
    column = frame[lists[0]].cast(pl.List(pl.Float32))
    widths = column.list.len().drop_nulls().unique().to_list()
    if len(widths) != 1:
        raise ValueError(f"the lists in {lists[0]} have lengths {sorted(widths)[:5]}")
    rows = [[np.nan] * widths[0] if row is None else row for row in column.to_list()]
    return np.array(rows, dtype=np.float32).reshape(len(rows), widths[0])


def _listed(path: Path) -> list[str]:
    """Item ids of a .json list, a .csv column or the lines of a text."""
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".json":
        names = json.loads(text)
        if not isinstance(names, list) or not all(isinstance(n, (str, int)) for n in names):
            raise ValueError(f"{path} is not a list of ids")
        return [str(name) for name in names]
    if path.suffix.lower() == ".csv":
        header, *lines = csv.reader(io.StringIO(text))
        column = header.index("item_id") if "item_id" in header else 0
        return [line[column] for line in lines if line]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _index(names: Sequence[str | None], count: int, origin: str) -> dict[str, int]:
    if len(names) != count:
        raise UsageError(
            f"{origin} has {count} rows, its list of item ids {len(names)}.",
            "Give one id a row, in the same order.",
        )
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name is None or name in rows:
            raise UsageError(
                f"{origin} has {'no id' if name is None else f'the id {name!r} again'} in row {row}.",
                "Give every row an id of its own.",
            )
        rows[name] = row
    return rows
