"""An adapter merged into its base model's weights, shard by shard, without loading the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from earec_core.errors import UsageError
from earec_core.files import copy_file, new_directory
from earec_core.llm.peft_adapter import LoraAdapter
from earec_core.llm.tensors import DTYPES, Array, TensorFile, is_finite, raw

_BLOCK = 1 << 22  # numbers that are in memory at once
# The same weights in other formats: unmerged, so they stay behind.
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot"}


def merge_into_base(
    composite: Path, base: Path, out: Path, *, progress: Callable[[int, int], None] = lambda *_: None
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
    shards = [TensorFile(path) for path in sorted(base.glob("*.safetensors"))]
    tensors = {name: stored for shard in shards for name, stored in shard.tensors.items()}
    _check(adapter, base, tensors)
    done = size = 0
    with new_directory(out, "merged model") as folder:
        for shard in shards:
            with (folder / shard.path.name).open("xb") as target:
                target.write(_header(shard.path))
                for name in shard.tensors:
                    for block in _merged(adapter, shard, name):
                        target.write(raw(block))
                    done += 1
                    progress(done, len(tensors))
                size += target.tell()
        for path in sorted(base.rglob("*")):
            inside = path.relative_to(base)
            hidden = any(part.startswith(".") for part in inside.parts[:-1])
            if path.is_file() and not hidden and path.suffix not in _OTHER_WEIGHTS:
                copy_file(path, folder / inside)
    return size


def _check(adapter: LoraAdapter, base: Path, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Raises UsageError for the first module that cannot be merged."""
    unquantized = "Name the base that the adapters were aligned on, not quantized."
    for name, (_, code) in tensors.items():
        if code.startswith(("F4", "F6")):  # several numbers a byte; torch reads none of them
            raise UsageError(f"{name} in {base} is stored as {code}.", unquantized)
    for module, (d_out, _, d_in) in adapter.shapes.items():
        name = f"{module}.weight"
        if name not in tensors:
            tied = _tied(base) and module.endswith("lm_head")
            raise UsageError(
                f"The base in {base} has no weight {name}"
                + (": it shares the word embedding's." if tied else "."),
                "Align without that module, or use the composite as an adapter."
                if tied
                else "Name the base that the adapters were aligned on.",
            )
        shape, code = tensors[name]
        wanted = (d_in, d_out) if adapter.config.get("fan_in_fan_out") else (d_out, d_in)
        if shape != wanted or code not in DTYPES:
            raise UsageError(
                f"{name} in {base} is {list(shape)} of {code}; the composite changes {list(wanted)} of F32, "
                "BF16 or F16.",
                unquantized,
            )


def _tied(base: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    return False


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _merged(adapter: LoraAdapter, shard: TensorFile, name: str) -> Iterator[Tensor]:
    """A tensor of the base in blocks of rows, merged if the composite changes it."""
    shape, module = shard.tensors[name][0], name.removesuffix(".weight")
    if not shape:
        yield shard.read(name)
        return
    factors = _product(adapter, module) if name != module and module in adapter.shapes else None
    step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        block = shard.read(name, rows)
        if factors is not None:
            merged = block.float().numpy() + factors[0][rows] @ factors[1]
            block = torch.from_numpy(merged).to(block.dtype)
            if not is_finite(block):
                raise UsageError(
                    f"{name} with the composite merged into it is too large for {str(block.dtype)[6:]}, or the "
                    "base's is not finite.",
                    "Convert the base to bfloat16 or float32, or compose with smaller weights.",
                )
        yield block


def _product(adapter: LoraAdapter, module: str) -> tuple[Array, Array]:
    """Two factors whose product is dW as the base stores it."""
    a, b, scale = adapter.factors(module)
    b = b * np.float32(scale)
    return (np.ascontiguousarray(a.T), b.T) if adapter.config.get("fan_in_fan_out") else (b, a)
