"""Item vectors in files that other tools read; another file is a function that writes it and a row of `FORMS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from earec_core.artifacts import ItemVectors
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.files import replacing, write_json
from earec_core.recommend.indexes import AUTO, build_index, check_index, recall, sampled, write_index
from earec_core.recommend.scaling import scaled
from earec_registry import Registry

_INDEXED = ".faiss"


@dataclass(frozen=True)
class ExportedVectors:
    """Vectors in a file.

    Attributes:
        file: that was written.
        beside: the file of the items' ids; None where they are in the file itself.
        items, d: its rows, and their width.
        scaling: that was applied.
        index: `kind`, `why`, `recall@10` and over how many `queries`; None where the file is no index.
    """

    file: Path
    beside: Path | None
    items: int
    d: int
    scaling: str
    index: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "file": str(self.file),
            "ids": None if self.beside is None else str(self.beside),
            "items": self.items,
            "d": self.d,
            "scaling": self.scaling,
            "index": self.index,
        }

    def lines(self) -> list[str]:
        """What was made, a sentence each."""
        said = [f"{self.file}: {self.items:,} vectors of {self.d} numbers, scaling {self.scaling}."]
        if self.beside is not None:
            said.append(f"Ids of the rows: {self.beside}")
        if self.index is not None:
            kind, why, found = (self.index[key] for key in ("kind", "why", "recall@10"))
            measured = f"measured on {self.index['queries']:,} items" if self.index["queries"] else "exact"
            said.append(f"The index is {kind}: {why}. Recall@10 {found:.3f}, {measured}.")
        return said


def check_vectors_file(file: Path, index: str, items: int | None = None) -> None:
    """Refuse what cannot be written, before the work.

    Args:
        items: rows, where they are known already.

    Raises:
        UsageError: no form has this ending, the form has no index, or see `check_index`.
    """
    if file.suffix not in FORMS:
        raise UsageError(
            f"{file.name!r} ends with none of {', '.join(FORMS)}.",
            "Name the vectors' file so, or say --as for an adapter or composite.",
        )
    if index != AUTO and file.suffix != _INDEXED:
        raise UsageError(
            f"A {file.suffix} file has no index.", f"Leave --index out, or name a {_INDEXED} file."
        )
    if items is not None:
        check_index(index, items)


def export_vectors(
    registry: Registry, reference: str, file: Path, scaling: RecommenderConfig, *, index: str = AUTO
) -> ExportedVectors:
    """Write registered item vectors to a file that needs no EAREC, complete or not at all.

    Args:
        file: its ending, a key of `FORMS`, says what is written; one that is there is replaced.
        scaling: `scaling`, and the settings that belong to it; `none` leaves the vectors as they are.
        index: of a FAISS file; see `earec_core.recommend.indexes.build_index`.

    Raises:
        UsageError: see `check_vectors_file` and `earec_core.recommend.scaling.fitted`; or they are no vectors.
        IntegrityError: they cannot be read.
    """
    check_vectors_file(file, index)
    vectors, ids = ItemVectors.open_with_ids(registry, reference)
    check_index(index, len(ids))
    table = vectors.vectors
    if scaling.scaling != "none":
        table = scaled(torch.from_numpy(table), scaling).numpy()
    beside, about = FORMS[file.suffix](file, table, ids, index)
    return ExportedVectors(file, beside, len(table), int(table.shape[1]), scaling.scaling, about)


Written = tuple[Path | None, Mapping[str, Any] | None]
"""The file of the ids beside, and what is said of the index, where there are such."""


def _parquet(file: Path, table: Float[np.ndarray, "n d"], ids: Sequence[str], _: str) -> Written:
    """Columns `item_id` and `vector`, an array of fixed width."""
    vector = pl.Series(np.ascontiguousarray(table), dtype=pl.Array(pl.Float32, table.shape[1]))
    columns = pl.DataFrame({"item_id": pl.Series(ids, dtype=pl.String), "vector": vector})
    with replacing(file) as temporary:
        columns.write_parquet(temporary)
    return None, None


def _npy(file: Path, table: Float[np.ndarray, "n d"], ids: Sequence[str], _: str) -> Written:
    with replacing(file) as temporary:
        with temporary.open("wb") as opened:
            np.save(opened, table, allow_pickle=False)
        return _write_ids(file, ids), None


def _faiss(file: Path, table: Float[np.ndarray, "n d"], ids: Sequence[str], index: str) -> Written:
    import faiss

    unit = np.array(table, dtype=np.float32, order="C")
    faiss.normalize_L2(unit)
    built = build_index(unit, index, rescored=False)
    rows = sampled(0 if built.exact else len(unit))
    found = recall(built, unit, unit[rows], rows) if len(rows) else 1.0
    about = {"kind": built.kind, "why": built.why, "recall@10": found, "queries": len(rows)}
    with replacing(file) as temporary:
        write_index(built.faiss, temporary)
        return _write_ids(file, ids), about


def _write_ids(file: Path, ids: Sequence[str]) -> Path:
    """The ids of the rows, as a JSON list beside a file; they are there before it."""
    beside = file.with_name(f"{file.name}.ids.json")
    write_json(beside, ids)
    return beside


FORMS: Mapping[str, Callable[[Path, Float[np.ndarray, "n d"], Sequence[str], str], Written]] = {
    ".parquet": _parquet,
    ".npy": _npy,
    _INDEXED: _faiss,
}
"""Who writes, by the file's ending."""
