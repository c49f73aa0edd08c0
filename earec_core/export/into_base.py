"""A composite merged into its base model's weights, shard by shard, without loading the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from earec_core.errors import IntegrityError, UsageError
from earec_core.files import copy_file, new_directory
from earec_core.llm.peft_adapter import LoraAdapter
from earec_core.llm.tensors import Array, Dtype, decode, encode

_DTYPES: dict[str, tuple[Dtype, str]] = {
    "F32": ("float32", "<f4"),
    "BF16": ("bfloat16", "<u2"),
    "F16": ("float16", "<f2"),
}
_BLOCK = 1 << 22  # numbers, or bytes, that are in memory at once
# The same weights in other formats: unmerged, so they stay behind.
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot"}


@dataclass(frozen=True)
class _Shard:
    """One safetensors file of the base.

    Attributes:
        path: the file.
        head: its length field and header, as they stand there.
        entries: each tensor's name, code of its type, shape, and size in bytes, in the order of the file.
    """

    path: Path
    head: bytes
    entries: tuple[tuple[str, str, tuple[int, ...], int], ...]


def merge_into_base(
    composite: Path, base: Path, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the base model with W + scale B A in place of W in every module of the composite.

    Files, headers, types and the order of the tensors stay; what the composite does not change is copied byte
    for byte. W + dW is computed in float32, in blocks of rows, and rounded to W's type. Everything else in the
    directory is copied, but for weights in other formats and hidden folders.

    Args:
        composite: a PEFT LoRA directory.
        base: the model directory, of safetensors.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        progress: called with (tensors done, tensors in all) after each tensor.

    Returns:
        Bytes of weights written.

    Raises:
        UsageError: a module has no weight of its shape and a plain type in the base; it is named.
        IntegrityError: a file is damaged.
        EarecError: the directory cannot be written.
    """
    adapter = LoraAdapter.open(composite)
    shards = [_read_shard(path) for path in sorted(base.glob("*.safetensors"))]
    _check(adapter, base, shards)
    total, done, size = sum(len(shard.entries) for shard in shards), 0, 0
    with new_directory(out, "merged model") as folder:
        for shard in shards:
            with shard.path.open("rb") as source, (folder / shard.path.name).open("xb") as target:
                source.seek(len(shard.head))
                target.write(shard.head)
                for entry in shard.entries:
                    for block in _tensor(adapter, source, shard.path, *entry):
                        target.write(block)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                target.flush()
                os.fsync(target.fileno())
                size += target.tell()
        for path in sorted(base.rglob("*")):
            inside = path.relative_to(base)
            hidden = any(part.startswith(".") for part in inside.parts[:-1])
            if path.is_file() and not hidden and path.suffix not in _OTHER_WEIGHTS:
                copy_file(path, folder / inside)
    return size


def _read_shard(path: Path) -> _Shard:
    try:
        with safe_open(path, framework="np"):  # the library's own check of lengths and offsets
            pass
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(int.from_bytes(head, "little"))
        header: Mapping[str, Any] = json.loads(head[8:])
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is damaged or cut short ({error}).", "Get the base model again, then run again."
        ) from error
    rows = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    rows.sort(key=lambda row: row[1]["data_offsets"])
    return _Shard(
        path,
        head,
        tuple(
            (name, row["dtype"], tuple(row["shape"]), row["data_offsets"][1] - row["data_offsets"][0])
            for name, row in rows
        ),
    )


def _check(adapter: LoraAdapter, base: Path, shards: list[_Shard]) -> None:
    """Raises UsageError for the first module that cannot be merged."""
    found = {name: (code, shape) for shard in shards for name, code, shape, _ in shard.entries}
    for module, (d_out, _, d_in) in adapter.shapes.items():
        if f"{module}.weight" not in found:
            tied = _tied(base) and module.endswith("lm_head")
            raise UsageError(
                f"The base in {base} has no weight {module}.weight"
                + (": it shares the word embedding's." if tied else "."),
                "Align without that module, or use the composite as an adapter."
                if tied
                else "Name the base that the adapters were aligned on.",
            )
        code, shape = found[f"{module}.weight"]
        wanted = (d_in, d_out) if adapter.config.get("fan_in_fan_out") else (d_out, d_in)
        if shape != wanted or code not in _DTYPES:
            raise UsageError(
                f"{module}.weight in {base} is {list(shape)} of {code}; the composite changes {list(wanted)} "
                "of F32, BF16 or F16.",
                "Name the base that the adapters were aligned on, not quantized.",
            )


def _tied(base: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    return False


def _tensor(
    adapter: LoraAdapter,
    source: BinaryIO,
    path: Path,
    name: str,
    code: str,
    shape: tuple[int, ...],
    size: int,
) -> Iterator[bytes | memoryview]:
    """The bytes of the next tensor of `source`, merged if the composite changes it."""
    module = name.removesuffix(".weight")
    if not name.endswith(".weight") or module not in adapter.shapes:
        while size:
            yield (block := _read(source, path, min(size, _BLOCK)))
            size -= len(block)
        return
    left, right = _product(adapter, module)
    dtype, bits = _DTYPES[code]
    width = size // shape[0]
    step = max(1, _BLOCK // shape[1])
    for start in range(0, shape[0], step):
        rows = left[start : start + step]
        raw = np.frombuffer(_read(source, path, len(rows) * width), dtype=bits)
        stored = encode(decode(raw, dtype).reshape(len(rows), shape[1]) + rows @ right, dtype)
        if not np.isfinite(decode(stored, dtype)).all():
            raise UsageError(
                f"{name} with the composite merged into it is too large for {dtype}, or the base's is not finite.",
                "Convert the base to bfloat16 or float32, or compose with smaller weights.",
            )
        yield np.ascontiguousarray(stored).data.cast("B")


def _product(adapter: LoraAdapter, module: str) -> tuple[Array, Array]:
    """Two factors whose product is dW as the base stores it."""
    a, b, scale = adapter.factors(module)
    b = b * np.float32(scale)
    return (np.ascontiguousarray(a.T), b.T) if adapter.config.get("fan_in_fan_out") else (b, a)


def _read(source: BinaryIO, path: Path, size: int) -> bytes:
    block = source.read(size)
    if len(block) != size:
        raise IntegrityError(f"{path} is cut short.", "Get the base model again, then run again.")
    return block
