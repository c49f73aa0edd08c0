"""`data export`: a dataset, and vectors of its items, as other recommender libraries read them.

Another library is a file with a function that writes a `DatasetExport` into a folder, and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.errors import UsageError
from earec_core.export.datasets.base import DatasetExport
from earec_core.export.datasets.recbole import write_recbole
from earec_core.export.datasets.rectools import write_rectools
from earec_core.files import check_new, new_directory

__all__ = ["DATASETS", "DatasetExport", "export_dataset"]

DATASETS: Mapping[str, Callable[[DatasetExport, Path], None]] = {
    "recbole": write_recbole,
    "rectools": write_rectools,
}
"""Who writes, by the name that `earec data export --format` takes."""


def export_dataset(
    catalog: Catalog,
    format: str,  # noqa: A002 - the option's name
    out: Path,
    *,
    vectors: ItemVectors | None = None,
    max_len: int | None = None,
) -> None:
    """Write a catalog's interactions, split by leave-one-out, its items and their vectors for another library.

    Args:
        format: a name of `DATASETS`.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        vectors: of this catalog's items.
        max_len: items of a history that is written out; default: `recommender.max_len`'s.

    Raises:
        UsageError: the catalog has no interactions, the library cannot hold an id or the vectors, or something is
            at `out`.
        EarecError: the directory cannot be written.
    """
    check_new(out)
    if not catalog.interactions.height:
        raise UsageError(
            f"{catalog.name} has no interactions, so a recommender has nothing to learn.",
            "Import a source with interactions.",
        )
    table = vectors.vectors if vectors else None
    with new_directory(out, "dataset") as folder:
        DATASETS[format](DatasetExport(catalog, out.resolve().name, table, max_len), folder)
