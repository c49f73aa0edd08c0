"""safetensors files one tensor at a time: the library reads them so, but writes only what is all in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from earec_core.artifacts.tables import header
from earec_core.errors import IntegrityError

if TYPE_CHECKING:
    Array = npt.NDArray[np.float32]
else:
    Array = np.ndarray  # jaxtyping subscripts the plain class at run time

Dtype = Literal["float32", "bfloat16", "float16"]

DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types that adapters and the weights they change may have, by the format's codes."""
_MAPPED = 1 << 21  # bytes


class TensorFile:
    """A safetensors file, read one tensor, or some rows of one, at a time.

    What is read lies in the mapped file, whose pages then count as this process's memory. So the file is mapped
    anew (in half a millisecond) after 2 MiB, and only what is still in use stays.

    Attributes:
        path: the file.
        tensors: the shape of each tensor and the code of its type, in the order of the file.

    Raises:
        IntegrityError: the file is damaged or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._left = path, _MAPPED
        self._file = self._map()
        slices = {name: self._file.get_slice(name) for name in self._file.offset_keys()}
        self.tensors = {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or those rows of it."""
        if self._left <= 0:
            self._file, self._left = self._map(), _MAPPED
        stored: Tensor = self._file.get_tensor(name)
        stored = stored if rows is None else stored[rows]
        self._left -= stored.nbytes
        return stored

    def _map(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise IntegrityError(
                f"{self.path} is damaged or cut short ({error}).",
                "Restore the file from its source, then run again.",
            ) from error


def to_array(stored: Tensor) -> Array:
    """The numbers in float32, which is exact; float32 tensors are not copied."""
    numbers: Array = stored.float().numpy()
    return numbers


def from_array(values: Array, dtype: Dtype) -> Tensor:
    """What is stored of float32 numbers: rounded to nearest even, too large ones infinite."""
    kept: torch.dtype = getattr(torch, dtype)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(kept)


def is_finite(stored: Tensor) -> bool:
    """Whether no number is NaN or infinite; in one pass, which `torch.isfinite` is not."""
    return not stored.numel() or all(math.isfinite(end) for end in torch.aminmax(stored))


def raw(stored: Tensor) -> memoryview:
    """The bytes of a tensor as a safetensors file holds them."""
    return stored.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Dtype,
    tensors: Iterable[tuple[str, Tensor]],
) -> int:
    """Write a safetensors file while its tensors are still being computed.

    The header comes first in the file, so every name and shape must be known beforehand.

    Args:
        path: the file; the caller syncs it to disk.
        shapes: each tensor's shape by its name, in the order of the file.
        dtype: how all of them are stored.
        tensors: (name, tensor of that type) in the same order.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: the tensors are not the ones that `shapes` announced.
        OSError: the disk is full or not writable.
    """
    wanted: torch.dtype = getattr(torch, dtype)
    code = next(code for code, name in DTYPES.items() if name == dtype)
    begin = header(shapes, code, wanted.itemsize, {"format": "pt"})
    end = len(begin) + sum(math.prod(shape) for shape in shapes.values()) * wanted.itemsize
    with path.open("xb") as file:
        file.write(begin)
        for (name, tensor), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            if (name, tuple(tensor.shape), tensor.dtype) != (expected, shape, wanted):
                raise ValueError(f"announced {expected} {shape}, got {name} {tensor.shape} {tensor.dtype}")
            file.write(raw(tensor))
    return end
