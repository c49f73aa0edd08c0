"""Tables of item embeddings: files and registered artifacts, read into one shape."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open

from earec_core.errors import EarecError, IntegrityError, UsageError
from earec_core.modality import Context
from earec_registry import Registry
from earec_registry.errors import NotFoundError

SUFFIXES = (".npy", ".parquet", ".safetensors")
PIN = "#sha256:"
_SET = "--set behavior.embeddings=NAME_OR_FILE"
_FIT = "earec behavior fit --data DIR"


@dataclass(frozen=True, eq=False)
class Table:
    """Item embeddings.

    Attributes:
        origin: what was asked for, for messages.
        values: (n, d); a row of NaN alone stands for an item without embedding.
        rows: item id to row; None where rows are the catalog's own.
        pinned: a reference to exactly this content.
        artifact: the registry's id of it, if it comes from there.
    """

    origin: str
    values: Float[np.ndarray, "n d"]
    rows: Mapping[str, int] | None
    pinned: str
    artifact: str | None = None

    @cached_property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Rows that hold an embedding."""
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


def load(reference: str, ids: str, context: Context) -> Table:
    """Read the table that a configuration names.

    Args:
        reference: registry reference or file; "" for the catalog's own `embeddings/<catalog>`.
        ids: file of item ids in row order, "" for none.
        context: catalog and registry.

    Raises:
        UsageError: not there, not readable, or made on another catalog.
        IntegrityError: a pinned file has changed.
    """
    file, _, pin = reference.partition(PIN)
    if file.lower().endswith(SUFFIXES):
        return _from_file(file, ids, pin)
    if ids:
        raise UsageError(
            f"behavior.ids={ids} does not go with {reference or 'registered embeddings'}: those have ids.",
            "Leave it out: --set behavior.ids=",
        )
    return _from_registry(reference or default_name(context.catalog), not reference, context)


def default_name(catalog: str) -> str:
    """Where `earec behavior fit` registers a catalog's embeddings."""
    return f"embeddings/{catalog}"


def _from_registry(reference: str, is_default: bool, context: Context) -> Table:
    if context.registry is None or (is_default and not context.catalog):
        raise UsageError(
            f"behavior.embeddings={reference!r} needs a registry and a catalog.", f"Give a file: {_SET}"
        )
    registry = Registry.open(context.registry)
    try:
        manifest = registry.manifest(reference)
    except NotFoundError as error:
        # A misspelled file name ends here too.
        what = (
            f"There are no item embeddings of the catalog {context.catalog!r} in the registry."
            if is_default
            else f"behavior.embeddings={reference!r} is no file of {', '.join(SUFFIXES)}: {error.what}"
        )
        raise UsageError(what, f"Make them: {_FIT}; or give others: {_SET}") from None
    data = manifest.data
    if data.get("kind") != "features" or data.get("modality") != "behavior":
        raise UsageError(
            f"{reference} is no table of item embeddings (kind {data.get('kind')}, {data.get('modality')}).",
            f"Make one: {_FIT}; or give another: {_SET}",
        )
    made_on = str(dict(data.get("catalog") or {}).get("name", ""))
    if context.catalog and made_on != context.catalog:
        raise UsageError(
            f"The item embeddings {reference} were made on the catalog {made_on!r}, this is the catalog "
            f"{context.catalog!r}: the same ids mean other items.",
            f"Give this catalog's: --set behavior.embeddings={default_name(context.catalog)} "
            f"(made by `earec behavior fit`).",
        )
    folder = registry.materialize(manifest.id)
    values = _safetensors(folder / "embeddings.safetensors")
    names = _strings((folder / "item_ids.json").read_bytes(), folder / "item_ids.json")
    return Table(
        reference, values, _index(names, len(values), reference), pinned=manifest.id, artifact=manifest.id
    )


def _from_file(name: str, ids: str, pin: str) -> Table:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256")
        ids_content = Path(ids).expanduser().read_bytes() if ids else b""
    except OSError as error:
        raise UsageError(
            f"The item embeddings cannot be read: {error.filename}: {error.strerror}.",
            f"Give a file that is there: {_SET}",
        ) from None
    digest.update(ids_content)
    if pin and pin != digest.hexdigest():
        raise IntegrityError(
            f"{name} is not the table that the model was aligned with (sha256:{pin[:12]}…).",
            f"Give it as {_SET} to use what it holds now.",
        )
    rows: Mapping[str, int] | None = None
    match path.suffix.lower():
        case ".parquet":
            if ids:
                raise UsageError(
                    f"behavior.ids={ids} does not go with {name}, which has its own ids.",
                    "Leave it out: --set behavior.ids=",
                )
            names, values = _parquet(path)
            rows = _index(names, len(values), name)
        case ".npy":
            values = _npy(path)
        case _:
            values = _safetensors(path)
    if ids:
        rows = _index(_strings(ids_content, Path(ids)), len(values), name)
    return Table(name, values, rows, pinned=f"{name}{PIN}{digest.hexdigest()}")


def _npy(path: Path) -> Float[np.ndarray, "n d"]:
    try:
        return _matrix(np.load(path, allow_pickle=False), path)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error


def _safetensors(path: Path) -> Float[np.ndarray, "n d"]:
    try:
        # Through torch: numpy has no bfloat16.
        with safe_open(str(path), framework="pt") as stored:
            names = list(stored.keys())
            if "embeddings" not in names and len(names) != 1:
                raise UsageError(
                    f"{path} holds {len(names)} tensors, none named 'embeddings'.",
                    "Name the one that holds the item embeddings 'embeddings'.",
                )
            tensor = stored.get_tensor("embeddings" if "embeddings" in names else names[0])
        return _matrix(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy(), path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _parquet(path: Path) -> tuple[list[str], Float[np.ndarray, "n d"]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    if "item_id" not in frame.columns:
        raise UsageError(
            f"{path} has no column item_id (it has {', '.join(frame.columns) or 'none'}).",
            "Name the column of item ids item_id.",
        )
    names = frame["item_id"].cast(pl.String).to_list()
    rest = frame.drop("item_id")
    lists = [c for c in rest.columns if isinstance(rest[c].dtype, (pl.List, pl.Array))]
    numbers = [c for c in rest.columns if rest[c].dtype.is_numeric()]
    if len(lists) == 1:
        vectors = rest[lists[0]].cast(pl.List(pl.Float32))
        lengths = vectors.list.len().drop_nulls().unique().to_list()
        if len(lengths) != 1:
            raise UsageError(
                f"The vectors in {path}, column {lists[0]}, have lengths {sorted(lengths)[:5]}.",
                "Give every item a vector of one length, or null.",
            )
        rows = [[np.nan] * lengths[0] if v is None else v for v in vectors.to_list()]
        return names, _matrix(np.array(rows, dtype=np.float32).reshape(len(rows), lengths[0]), path)
    if lists or not numbers:
        raise UsageError(
            f"{path} has {len(lists)} list columns and {len(numbers)} numeric columns beside item_id.",
            "Give the embedding as one list column, or as numeric columns alone.",
        )
    return names, _matrix(rest.select(pl.col(numbers).cast(pl.Float32)).to_numpy(), path)


def _matrix(values: Any, path: Path) -> Float[np.ndarray, "n d"]:
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        got = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UsageError(
            f"{path} holds {got}, not a table of numbers (items x dimensions).", f"Give another: {_SET}"
        )
    if 0 in values.shape:
        raise UsageError(f"{path} is empty ({values.shape[0]} x {values.shape[1]}).", f"Give another: {_SET}")
    return np.ascontiguousarray(values, dtype=np.float32)


def _strings(content: bytes, path: Path) -> list[str]:
    """Item ids of a .json list, a .csv column or the lines of a text."""
    try:
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            names = json.loads(text)
            if not isinstance(names, list) or not all(isinstance(n, (str, int)) for n in names):
                raise ValueError("not a list of ids")
            return [str(name) for name in names]
        if path.suffix.lower() == ".csv":
            header, *lines = csv.reader(io.StringIO(text))
            column = header.index("item_id") if "item_id" in header else 0
            return [line[column] for line in lines if line]
        return [line.strip() for line in text.splitlines() if line.strip()]
    except (ValueError, IndexError) as error:
        raise _unreadable(path, error) from error


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


def _unreadable(path: Path, error: Exception) -> EarecError:
    return UsageError(
        f"{path} cannot be read: {str(error).rstrip('.')}.", "Write the file again, or give another."
    )
