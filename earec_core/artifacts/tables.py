"""Tables with a row an item, written part by part and read from the mapped file.

Files: `<kind>.safetensors` with the tensor `<kind>` (n d), `item_ids.json` in row order.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import safe_open

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
    table: Float[np.ndarray, "n d"] | Path,
    item_ids: Sequence[str] | Iterable[Sequence[str]],
    *,
    name: str,
    why: str,
) -> str:
    """Store a table of items with its manifest; gives the artifact's id.

    Args:
        table: the table, or the file that `write_table` made of it.
        item_ids: of all rows, or of some rows after others.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, ids = Path(folder) / f"{manifest.kind}.safetensors", Path(folder) / IDS
        if isinstance(table, Path):
            file = table
        else:
            write_table(file, manifest.kind, len(table), [table])
        _write_ids(ids, [item_ids] if isinstance(item_ids, Sequence) else item_ids)
        return save(registry, manifest, {f"{manifest.kind}.safetensors": file, IDS: ids}, name=name, why=why)


def write_table(path: Path, kind: str, n: int, parts: Iterable[Float[np.ndarray, "m d"]]) -> int:
    """Write a table's file while its rows are still being made; gives its width.

    Args:
        n: rows of all parts together.
        parts: at least one.

    Raises:
        ValueError: there are more rows or fewer, or they differ in width.
        OSError: the disk is full or not writable.
    """
    written, d = 0, 0
    with path.open("xb") as file:
        for part in parts:
            if not written:
                d = int(part.shape[1])
                file.write(header({kind: (n, d)}, "F32", 4))
            if part.shape[1] != d:
                raise ValueError(f"rows of {d} and of {part.shape[1]} values")
            file.write(np.ascontiguousarray(part, dtype=np.float32).data)
            written += len(part)
    if written != n:
        raise ValueError(f"{written} rows, not {n}")
    return d


def read_table(path: Path, tensor: str) -> Float[np.ndarray, "n d"]:
    """A table from its file, mapped: what is not looked at takes no memory. It may be written to, in memory.

    Raises:
        OSError, ValueError, SafetensorError: it cannot be read, or is no table of float32.
    """
    with safe_open(str(path), framework="np") as tensors:
        if tensor not in tensors.keys():  # noqa: SIM118 - it is no mapping
            raise ValueError(f"it has no tensor {tensor}")
        found = tensors.get_slice(tensor)
        shape, dtype = tuple(found.get_shape()), found.get_dtype()
    if dtype != "F32" or len(shape) != 2:
        raise ValueError(f"its {tensor} are {dtype} {shape}, not a table of F32")
    if not math.prod(shape):
        return np.empty(shape, dtype=np.float32)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = json.loads(file.read(length))[tensor]["data_offsets"][0]
    return np.memmap(path, np.float32, "c", 8 + length + start, shape).view(np.ndarray)


def header(
    shapes: Mapping[str, tuple[int, ...]],
    code: str,
    itemsize: int,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """What a safetensors file begins with, its tensors of one type following in this order.

    The library writes only what is all in memory. Format: https://github.com/huggingface/safetensors#format

    Args:
        code: the type's in the format, such as F32.
        itemsize: its bytes.
    """
    described: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        described[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first tensor to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _write_ids(path: Path, parts: Iterable[Sequence[str]]) -> None:
    """Ids as one JSON list."""
    with path.open("w") as file:
        file.writelines(_listed(parts))


def _listed(parts: Iterable[Sequence[str]]) -> Iterator[str]:
    opening = "["
    for part in filter(len, parts):
        yield opening + json.dumps(list(part))[1:-1]
        opening = ", "
    yield "]" if opening != "[" else "[]"
