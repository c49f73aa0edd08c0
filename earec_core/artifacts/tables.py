"""Tables with a row an item.

Files: `<kind>.safetensors` with the tensor `<kind>` (n d), `item_ids.json` in row order.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from earec_core.artifacts.base import DataRecord, Manifest, Record, save
from earec_registry import Registry

IDS = "item_ids.json"


class TableShape(Record):
    """Rows and width of a table of items."""

    items: int
    d: int


class TableManifest(Manifest):
    """The part that the manifest of every table has: the catalog whose items it holds, and its shape."""

    data: DataRecord
    shapes: TableShape


def save_table(
    registry: Registry,
    manifest: TableManifest,
    table: Float[np.ndarray, "n d"],
    item_ids: Sequence[str],
    *,
    name: str,
    why: str,
) -> str:
    """Store a table of items with its manifest; gives the artifact's id."""
    with tempfile.TemporaryDirectory() as folder:
        files = {file: Path(folder) / file for file in (f"{manifest.kind}.safetensors", IDS)}
        tensors, ids = files.values()
        save_file({manifest.kind: np.ascontiguousarray(table)}, tensors)
        ids.write_text(json.dumps(list(item_ids)))
        return save(registry, manifest, files, name=name, why=why)
