"""A composition as a recipe that mergekit runs: the parts' adapters, and how to merge them into the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from earec_core.artifacts import MethodRecord
from earec_core.errors import UsageError
from earec_core.files import copy_file, new_directory
from earec_core.llm.peft_adapter import CONFIG, WEIGHTS, LoraAdapter

_METHODS = {"delta": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}


def write_mergekit(
    adapters: Mapping[str, LoraAdapter],
    weights: Mapping[str, float],
    method: MethodRecord,
    base: Path,
    out: Path,
) -> None:
    """Write the parts' adapters and a `mergekit.yml` that merges them into the base in the same way.

    `mergekit-yaml mergekit.yml MERGED --lora-merge-cache CACHE`, run inside `out`, makes the model: of `delta`
    the one of `merge_into_base`; of `ties` and `dare` before they are stored as factors. mergekit's `dare_linear`
    draws masks of its own, and rescales to the norm that dW had in place of dividing by the density.

    Args:
        adapters, weights: lambda of each, as used; those at 0 are left out.
        method: one that `check_mergekit` has passed.
        base: the base model's directory, with a `config.json`.
        out: the directory to write; it must not exist, or be empty.

    Raises:
        UsageError: something is at `out`.
        EarecError: it cannot be written.
    """
    parts = {name: weights[name] for name in sorted(weights) if weights[name] != 0.0}
    settings = {name: value for name, value in method.options.items() if name == "density"}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    # mergekit's ties divides by the sum of the weights that agree; `lambda` gives the sum of all weights back.
    ties = method.name == "ties"
    recipe: dict[str, Any] = {
        "merge_method": _METHODS[method.name],
        "base_model": str(base),
        "models": [
            {"model": f"{base}+./adapters/{name}", "parameters": {"weight": weight, **settings}}
            for name, weight in parts.items()
        ],
        "parameters": {"normalize": ties, "lambda": sum(parts.values()) if ties else 1.0},
        "dtype": "float32",
        "out_dtype": str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    }
    with new_directory(out, "recipe") as folder:
        for name in parts:
            for file in (CONFIG, WEIGHTS):
                copy_file(adapters[name].path / file, folder / "adapters" / name / file)
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        (folder / "mergekit.yml").write_bytes(text.encode())


def check_mergekit(
    adapters: Mapping[str, LoraAdapter],
    weights: Mapping[str, float],
    method: MethodRecord,
    *,
    per_layer: bool = False,
) -> None:
    """Raises UsageError for what mergekit cannot express, by name."""
    name, rank, ties = method.name, method.rank, method.name == "ties"
    modules = {tuple(adapters[part].shapes) for part, weight in weights.items() if weight != 0.0 and ties}
    for refused, feature, reason in (
        (name not in _METHODS, f"the method {name}", f"it has {', '.join(_METHODS)}"),
        (rank is not None, f"a composite cut to rank {rank}", "it merges into weights, which have no rank"),
        (per_layer, "weights of single layers", "a part has one weight there"),
        (ties and min(weights.values()) < 0.0, "ties with negative weights", "it divides by their sum"),
        (len(modules) > 1, "ties of adapters with different modules", "it weighs what one lacks as 0"),
    ):
        if refused:
            raise UsageError(
                f"mergekit cannot do {feature}: {reason}.",
                "Export --as merged or --as peft, or compose another way.",
            )
