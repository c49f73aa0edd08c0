"""Read and write safetensors files one tensor at a time, with numpy alone.

safetensors' own Python writer wants every tensor in memory at once, and its numpy reader has no bfloat16;
both matter here, where a file may be larger than memory and importing torch would cost two seconds.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from earec_core.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    Array = npt.NDArray[np.float32]
else:
    Array = np.ndarray  # jaxtyping subscripts the plain class at run time

Stored = npt.NDArray[Any]  # float32, float16, or bfloat16's bits as uint16
Dtype = Literal["float32", "bfloat16", "float16"]

_CODES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NAMES = {name: code for code, name in _CODES.items()}
_STORED: dict[Dtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
}
BLOCK = 1 << 16
"""Numbers that stay in the cache from one step of arithmetic to the next."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file.

    Attributes:
        dtype: how its numbers are stored.
        shape: its shape.
        offset: its first byte, counted from the start of the file.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a safetensors file without reading one.

    Args:
        path: the file.

    Returns:
        Each tensor's place by its name, in alphabetical order.

    Raises:
        IntegrityError: the file is damaged or cut short.
        UsageError: a tensor's numbers are neither float32, bfloat16 nor float16.
    """
    try:
        with safe_open(path, framework="np"):  # the library's own check of lengths and offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is damaged or cut short ({error}).", "Restore the file from its source, then run again."
        ) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items()):
        if entry["dtype"] not in _CODES:
            raise UsageError(
                f"Tensor {name} in {path} is stored as {entry['dtype']}.",
                "Save the adapter as float32, bfloat16 or float16.",
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(_CODES[entry["dtype"]], tuple(entry["shape"]), start)
    return tensors


def read_stored(path: Path, tensor: StoredTensor) -> Stored:
    """Read one tensor as it is stored; `decode` makes it float32.

    Args:
        path: the safetensors file.
        tensor: its place, from `read_header`.

    Raises:
        IntegrityError: the file is shorter than its header says.
    """
    count = int(np.prod(tensor.shape, dtype=np.int64))
    # A plain read, not a memory map: mapped pages would count as this process's memory.
    next_step = "Restore the file from its source, then run again."
    try:
        stored = np.fromfile(path, dtype=_STORED[tensor.dtype], count=count, offset=tensor.offset)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror or error}).", next_step) from error
    if stored.size != count:
        raise IntegrityError(f"{path} is cut short.", next_step)
    return stored.reshape(tensor.shape)


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Dtype,
    tensors: Iterable[tuple[str, Stored]],
) -> int:
    """Write a safetensors file while its tensors are still being computed.

    The header comes first in the file, so every name and shape must be known beforehand.

    Args:
        path: the file; it is synced to disk before the function returns.
        shapes: each tensor's shape by its name, in the order of the file.
        dtype: how all of them are stored.
        tensors: (name, tensor as `encode` returns it) in the same order.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: the tensors are not the ones that `shapes` announced.
        OSError: the disk is full or not writable.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * _STORED[dtype].itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first tensor to 8 bytes
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, tensor), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            if name != expected or tensor.shape != shape or tensor.dtype != _STORED[dtype]:
                raise ValueError(f"announced {expected} {shape}, got {name} {tensor.shape} {tensor.dtype}")
            file.write(np.ascontiguousarray(tensor).data)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end


def encode(values: Array, dtype: Dtype) -> Stored:
    """Turn float32 numbers into what is stored; bfloat16 as its 16 bits, rounded to nearest even.

    Numbers too large for `dtype` become infinite, as they do in torch.
    """
    if dtype == "bfloat16":
        stored = np.empty(values.shape, "<u2")
        bits, rounded = np.ascontiguousarray(values, "<f4").view("<u4").reshape(-1), stored.reshape(-1)
        for start in range(0, bits.size, BLOCK):
            block = bits[start : start + BLOCK]
            odd = (block >> np.uint32(16)) & np.uint32(1)
            odd += block
            odd += np.uint32(0x7FFF)
            odd >>= np.uint32(16)
            rounded[start : start + BLOCK] = odd
        return stored
    with np.errstate(over="ignore"):
        return values.astype(_STORED[dtype], copy=False)


def decode(stored: Stored, dtype: Dtype) -> Array:
    """The float32 numbers of what `encode` returned; exact."""
    if dtype == "bfloat16":
        return np.left_shift(stored, np.uint32(16), dtype="<u4").view("<f4").astype(np.float32, copy=False)
    return stored.astype(np.float32, copy=False)


def is_finite(stored: Stored, dtype: Dtype) -> bool:
    """Whether no number is NaN or infinite."""
    numbers = stored.reshape(-1)
    blocks = (numbers[start : start + BLOCK] for start in range(0, numbers.size, BLOCK))
    if dtype == "bfloat16":
        infinite = np.uint16(0x7F80)
        return all((block & np.uint16(0x7FFF)).max() < infinite for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)
