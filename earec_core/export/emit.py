"""A composite in the form that other tools read: a plain PEFT directory, or a recipe for mergekit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from earec_core.errors import IntegrityError, UsageError
from earec_core.files import copy_file, new_directory, write_file
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS, LoraAdapter

RECIPE = "mergekit.yml"
_METHODS = {"delta": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}


def emit_peft(composite: Path, out: Path) -> None:
    """Copy a composite's adapter into a directory of its own, which `PeftModel.from_pretrained` loads.

    Args:
        composite: a directory with a PEFT LoRA adapter, among other files or not.
        out: the directory to write; it must not exist, or be empty.

    Raises:
        UsageError: something is at `out`.
        EarecError: it cannot be written.
    """
    with new_directory(out, "adapter") as folder:
        for name in (CONFIG, WEIGHTS):
            copy_file(composite / name, folder / name)


def emit_mergekit(
    adapters: Mapping[str, Path],
    weights: Mapping[str, float],
    base: Path,
    out: Path,
    *,
    method: str = "delta",
    options: Mapping[str, float] | None = None,
) -> None:
    """Write the parts' adapters and a `mergekit.yml` that merges them into the base in the same way.

    `mergekit-yaml mergekit.yml MERGED --lora-merge-cache CACHE`, run inside `out`, makes the model: of `delta`
    the one of `merge_into_base`; of `ties` and `dare` before they are stored as factors. mergekit's `dare_linear`
    draws masks of its own, and rescales to the norm that dW had in place of dividing by the density.

    Args:
        adapters: PEFT LoRA directory by name.
        weights: lambda by the same names, as used; those at 0 are left out.
        base: the base model's directory.
        out: the directory to write; it must not exist, or be empty.
        method: see `check_mergekit`.
        options: of the method: `density`.

    Raises:
        UsageError: mergekit cannot express it, or something is at `out`.
        EarecError: it cannot be written.
    """
    check_mergekit(method, weights)
    parts = {name: weights[name] for name in sorted(weights) if weights[name] != 0.0}
    opened = {name: LoraAdapter.open(adapters[name]) for name in parts}
    if method == "ties" and len({adapter.modules for adapter in opened.values()}) > 1:
        raise _cannot(
            "ties of adapters with different modules", "it weighs a module that an adapter lacks as 0"
        )
    density = {name: value for name, value in (options or {}).items() if name == "density"}
    # mergekit's ties divides by the sum of the weights that agree; `lambda` gives their whole sum back.
    ties = method == "ties"
    recipe: dict[str, Any] = {
        "merge_method": _METHODS[method],
        "base_model": str(base),
        "models": [
            {"model": f"{base}+./adapters/{name}", "parameters": {"weight": weight, **density}}
            for name, weight in parts.items()
        ],
        "parameters": {"normalize": ties, "lambda": sum(parts.values()) if ties else 1.0},
        "dtype": "float32",
        "out_dtype": _dtype(base),
    }
    with new_directory(out, "recipe") as folder:
        for name in parts:
            for file in (CONFIG, WEIGHTS):
                copy_file(opened[name].path / file, folder / "adapters" / name / file)
        write_file(folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode())


def check_mergekit(
    method: str,
    weights: Mapping[str, float],
    *,
    rank: int | None = None,
    per_layer: bool = False,
) -> None:
    """Raises UsageError for what mergekit cannot express, by name."""
    if method not in _METHODS:
        raise _cannot(f"the method {method}", f"it has {', '.join(_METHODS)}")
    if rank is not None:
        raise _cannot("--rank", "it merges into the base's weights, which have no rank")
    if per_layer:
        raise _cannot("weights of single layers", "a part has one weight here")
    if method == "ties" and any(weight < 0.0 for weight in weights.values()):
        raise _cannot("ties with negative weights", "it divides by their sum")


def _dtype(base: Path) -> str:
    """The type that a model directory's weights are stored in."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{base / 'config.json'} cannot be read ({error}).", "Get the base model again, then run again."
        ) from error
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _cannot(what: str, why: str) -> UsageError:
    return UsageError(
        f"mergekit cannot do {what}: {why}.", "Use --into-base or --emit peft, or compose another way."
    )
