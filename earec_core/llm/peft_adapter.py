"""Read a plain PEFT LoRA directory lazily: its configuration at once, its factors one module at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float32

from earec_core.errors import IntegrityError, UsageError
from earec_core.llm.tensors import (
    Array,
    Dtype,
    Stored,
    StoredTensor,
    decode,
    is_finite,
    read_header,
    read_stored,
)

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
        r: the configuration's rank; a module may have its own (`shapes`).
        alpha: the configuration's `lora_alpha`; a module may have its own (`scale`).
        use_rslora: whether the scale is alpha / sqrt(r) in place of alpha / r.
        shapes: (d_out, r, d_in) by module, modules in alphabetical order.
        dtype: how its factors are stored; float32 where they are not all stored alike.
    """

    path: Path
    config: Mapping[str, Any]
    r: int
    alpha: float
    use_rslora: bool
    shapes: Mapping[str, tuple[int, int, int]]
    dtype: Dtype
    _tensors: Mapping[str, StoredTensor]

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted modules' names in the base model, in alphabetical order."""
        return tuple(self.shapes)

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
        tensors = read_header(path / WEIGHTS)
        shapes = _shapes(path, tensors)
        ranks = config.get("rank_pattern") or {}
        for module, (_, rank, _) in shapes.items():
            expected = _lookup(path, ranks, module, float(r))
            if rank != expected:
                raise IntegrityError(
                    f"{module} has rank {rank} in {path / WEIGHTS}, but {CONFIG} says {expected:g}.",
                    "Restore both files from one source.",
                )
        dtypes = {tensor.dtype for tensor in tensors.values()}
        dtype: Dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        rslora = bool(config.get("use_rslora", False))
        return cls(path, config, int(r), float(alpha), rslora, shapes, dtype, tensors)

    def scale(self, module: str) -> float:
        """The factor in front of B @ A: alpha / r, for rsLoRA alpha / sqrt(r); `alpha_pattern` honoured."""
        rank = self.shapes[module][1]
        alpha = _lookup(self.path, self.config.get("alpha_pattern") or {}, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def factors(self, module: str) -> tuple[Float32[Array, "r d_in"], Float32[Array, "d_out r"], float]:
        """Read one module's factors.

        Args:
            module: one of `modules`.

        Returns:
            A [r, d_in] and B [d_out, r], float32, and the scale in front of B @ A.

        Raises:
            IntegrityError: a number is NaN or infinite, or the file is cut short.
        """
        a, b = self.stored(module)
        return decode(a, self.dtype), decode(b, self.dtype), self.scale(module)

    def stored(self, module: str) -> tuple[Stored, Stored]:
        """Read one module's A and B as numbers of `dtype`, for `decode`; see `factors`."""
        return self._read(KEY_A.format(module)), self._read(KEY_B.format(module))

    def _read(self, key: str) -> Stored:
        tensor = self._tensors[key]
        values = read_stored(self.path / WEIGHTS, tensor)
        if not is_finite(values, tensor.dtype):
            raise IntegrityError(
                f"Tensor {key} of the adapter in {self.path} holds NaN or infinite numbers.",
                "Align this modality again, for example with a lower learning rate.",
            )
        return values if tensor.dtype == self.dtype else decode(values, tensor.dtype)


def layer_of(module: str) -> int | None:
    """The n of a module named `...layers.n...` or `...h.n...`; None for any other."""
    found = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", module)
    return int(found[1]) if found else None


def _read_config(path: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            pickled = name == WEIGHTS and (path / "adapter_model.bin").exists()
            raise UsageError(
                f"{path} has no {name}" + (", only a pickled adapter_model.bin." if pickled else "."),
                "Save the adapter with safe_serialization=True."
                if pickled
                else "Name a PEFT LoRA directory.",
            )
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
    if config.get("peft_type") != "LORA":
        found = f"of PEFT type {config.get('peft_type')}"
    elif config.get("bias", "none") != "none":
        found = f"trained with bias={config['bias']}"
    elif config.get("init_lora_weights", True) not in _PLAIN_INIT:
        found = (
            f"trained with init_lora_weights={config['init_lora_weights']}, which changes the base weights"
        )
    elif on := sorted(name for name, value in config.items() if name not in _NEUTRAL and value):
        found = f"trained with {', '.join(on)}"
    else:
        return
    raise UsageError(
        f"The adapter in {path} is {found}, which the composition of Eq. 4 does not cover.",
        "Compose plain LoRA adapters (rsLoRA included).",
    )


def _shapes(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, int, int]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise UsageError(
                f"Tensor {name} of shape {list(tensor.shape)} in {path / WEIGHTS} is not a linear layer's "
                "LoRA factor, which is all that the composition of Eq. 4 covers.",
                "Compose plain LoRA adapters on linear layers, saved with save_embedding_layers=False.",
            )
        found.setdefault(match["module"], {})[match["factor"]] = tensor.shape
    if not found:
        raise UsageError(f"{path / WEIGHTS} holds no LoRA factor.", "Name a trained PEFT LoRA directory.")
    for module, pair in found.items():
        if len(pair) != 2 or pair["A"][0] != pair["B"][1]:
            raise IntegrityError(
                f"The factors of {module} in {path / WEIGHTS} do not belong together "
                f"({', '.join(f'{factor} {list(shape)}' for factor, shape in sorted(pair.items()))}).",
                "Restore the file from its source.",
            )
    return {module: (*found[module]["B"], found[module]["A"][1]) for module in sorted(found)}  # type: ignore[misc]


def _lookup(path: Path, pattern: Mapping[str, Any], module: str, default: float) -> float:
    """A module's own rank or alpha, by PEFT's rule: the first pattern that matches the name or its end."""
    for key, value in pattern.items():
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
