"""Read a plain PEFT LoRA directory lazily: its configuration at once, its factors one module at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from earec_core.errors import IntegrityError, UsageError
from earec_core.llm.tensors import DTYPES, Array, Dtype, TensorFile, is_finite, to_array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KEY_A = "base_model.model.{}.lora_A.weight"
KEY_B = "base_model.model.{}.lora_B.weight"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Fields that leave dW = scale * B @ A as it is. Any other field that is switched on is refused, so that a
# variant which a later PEFT invents is refused too, not composed wrongly.
_NEUTRAL = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "lora_dropout",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "eva_config",
    "megatron_core",
    "qalora_group_size",
}
# The other initialisations take a part out of the base weights, so B @ A is not the whole change.
_PLAIN_INIT = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LoraAdapter:
    """A plain LoRA adapter on disk, dW = scale * B @ A for each of its modules.

    Attributes:
        path: its directory.
        config: `adapter_config.json`, as read.
        shapes: (d_out, r, d_in) by the module's name in the base model, in alphabetical order.
        scales: the factor in front of B @ A, by module: alpha / r, for rsLoRA alpha / sqrt(r).
        dtype: how its factors are stored; float32 where they are not all stored alike.
    """

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, int, int]]
    scales: Mapping[str, float]
    dtype: Dtype
    _file: TensorFile

    @classmethod
    def open(cls, path: Path) -> LoraAdapter:
        """Read an adapter's configuration and the list of its tensors.

        Args:
            path: a directory with `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            UsageError: there is no such adapter, or it is of a variant that Eq. 4's arithmetic does not cover
                (DoRA, lora_bias, modules_to_save, ...), named.
            IntegrityError: a file is damaged, or the tensors are not those of the configuration.
        """
        path = Path(path)
        config = _read_config(path)
        _refuse_variants(path, config)
        r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
        if not _is_number(r) or not _is_number(alpha) or r < 1:
            raise IntegrityError(
                f"{path / CONFIG} gives r={r!r} and lora_alpha={alpha!r}.",
                "Restore the file from its source.",
            )
        file = TensorFile(path / WEIGHTS)
        shapes, scales = _shapes(file), {}
        for module, (_, rank, _) in shapes.items():
            expected = _lookup(path, config.get("rank_pattern"), module, float(r))
            if rank != expected:
                raise IntegrityError(
                    f"{module} has rank {rank} in {file.path}, but {CONFIG} says {expected:g}.",
                    "Restore both files from one source.",
                )
            own = _lookup(path, config.get("alpha_pattern"), module, float(alpha))
            scales[module] = own / (math.sqrt(rank) if config.get("use_rslora") else rank)
        codes = {code for _, code in file.tensors.values()}
        return cls(path, config, shapes, scales, DTYPES[codes.pop()] if len(codes) == 1 else "float32", file)

    def factors(self, module: str) -> tuple[Float32[Array, "r d_in"], Float32[Array, "d_out r"], float]:
        """Read one module's A and B in float32, and the scale in front of B @ A; see `stored`."""
        a, b = self.stored(module)
        return to_array(a), to_array(b), self.scales[module]

    def stored(self, module: str) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """Read one module's A and B as numbers of `dtype`.

        Raises:
            IntegrityError: a number is NaN or infinite, or the file is cut short.
        """
        return self._read(KEY_A.format(module)), self._read(KEY_B.format(module))

    def _read(self, key: str) -> Tensor:
        factor = self._file.read(key)
        if not is_finite(factor):
            raise IntegrityError(
                f"Tensor {key} of the adapter in {self.path} holds NaN or infinite numbers.",
                "Align this modality again, for example with a lower learning rate.",
            )
        return factor.to(getattr(torch, self.dtype))


def layer_of(module: str) -> int | None:
    """The n of a module named `...layers.n...` or `...h.n...`; None for any other."""
    match = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", module)
    return int(match[1]) if match else None


def _read_config(path: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            if name == WEIGHTS and (path / "adapter_model.bin").exists():
                raise UsageError(
                    f"{path} has no {name}, only a pickled adapter_model.bin.",
                    "Save the adapter with safe_serialization=True.",
                )
            raise UsageError(f"{path} has no {name}.", "Name a PEFT LoRA directory.")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{path / CONFIG} cannot be read ({error}).", "Restore the file from its source."
        ) from error
    return config


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    on = sorted(name for name, value in config.items() if name not in _NEUTRAL and value)
    if config.get("peft_type") != "LORA":
        variant = f"of PEFT type {config.get('peft_type')}"
    elif config.get("bias", "none") != "none":
        variant = f"trained with bias={config['bias']}"
    elif (init := config.get("init_lora_weights", True)) not in _PLAIN_INIT:
        variant = f"trained with init_lora_weights={init}, which changes the base weights"
    elif on:
        variant = f"trained with {', '.join(on)}"
    else:
        return
    raise UsageError(
        f"The adapter in {path} is {variant}, which the composition of Eq. 4 does not cover.",
        "Compose plain LoRA adapters (rsLoRA included).",
    )


def _shapes(file: TensorFile) -> dict[str, tuple[int, int, int]]:
    """(d_out, r, d_in) by module."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (shape, code) in sorted(file.tensors.items()):
        match = _KEY.fullmatch(name)
        if code not in DTYPES:
            raise UsageError(
                f"Tensor {name} in {file.path} is stored as {code}.",
                "Save the adapter as float32, bfloat16 or float16.",
            )
        if match is None or len(shape) != 2:
            raise UsageError(
                f"Tensor {name} of shape {list(shape)} in {file.path} is not a linear layer's "
                "LoRA factor, which is all that the composition of Eq. 4 covers.",
                "Compose plain LoRA adapters on linear layers, saved with save_embedding_layers=False.",
            )
        factors.setdefault(match["module"], {})[match["factor"]] = shape
    if not factors:
        raise UsageError(f"{file.path} holds no LoRA factor.", "Name a trained PEFT LoRA directory.")
    shapes = {}
    for module, pair in sorted(factors.items()):
        if len(pair) != 2 or pair["A"][0] != pair["B"][1]:
            raise IntegrityError(
                f"The factors of {module} in {file.path} do not belong together "
                f"({', '.join(f'{factor} {list(shape)}' for factor, shape in sorted(pair.items()))}).",
                "Restore the file from its source.",
            )
        (d_out, rank), d_in = pair["B"], pair["A"][1]
        shapes[module] = (d_out, rank, d_in)
    return shapes


def _lookup(path: Path, pattern: Mapping[str, Any] | None, module: str, default: float) -> float:
    """A module's own rank or alpha, by PEFT's rule: the first pattern that matches the name or its end."""
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module) and _is_number(value):
                return float(value)
        except re.error as error:
            raise UsageError(
                f"{path / CONFIG} holds the pattern {key!r}, which is no regular expression ({error}).",
                "Correct it in rank_pattern or alpha_pattern.",
            ) from error
    return default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
