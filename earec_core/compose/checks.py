"""Whether adapters fit each other and the recipe: shapes, configurations, layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from earec_core.compose.recipe import Recipe
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import LoraAdapter, layer_of


def check_adapters(adapters: Mapping[str, LoraAdapter], recipe: Recipe) -> None:
    """Raises UsageError when adapters with the recipe's names cannot be composed by it."""
    first: dict[str, str] = {}
    for name, adapter in adapters.items():
        for module, (d_out, _, d_in) in adapter.shapes.items():
            other = first.setdefault(module, name)
            other_out, _, other_in = adapters[other].shapes[module]
            if (other_out, other_in) != (d_out, d_in):
                raise UsageError(
                    f"Adapters {other} and {name} belong to different backbones: {module} is "
                    f"{other_out}x{other_in} (out x in) in {other} and {d_out}x{d_in} in {name}.",
                    "Compose adapters that were aligned on one backbone.",
                )
    if unknown := set(recipe.used_layers) - {layer_of(module) for module in first}:
        raise UsageError(
            f"Weights are given for layer {min(unknown)}, which no adapter changes.",
            "Leave it out; layers count from 0.",
        )
    taking = {name: adapters[name] for name in recipe.taking}
    for key in ("fan_in_fan_out", "task_type"):
        values = [str(v) for adapter in taking.values() if (v := adapter.config.get(key)) is not None]
        if len(set(values)) > 1:
            raise UsageError(
                f"Adapters {', '.join(taking)} differ in {key} ({', '.join(values)}).",
                "Compose adapters that were made for one kind of model.",
            )
    if recipe.arithmetic.rank == "equal":
        _check_equal(taking, recipe.method)


def _check_equal(adapters: Mapping[str, LoraAdapter], method: str) -> None:
    first: dict[str, str] = {}
    for name, adapter in adapters.items():
        for module, (_, rank, _) in adapter.shapes.items():
            other, scale = adapters[first.setdefault(module, name)], adapter.scales[module]
            other_rank, other_scale = other.shapes[module][1], other.scales[module]
            if rank != other_rank or not math.isclose(scale, other_scale, rel_tol=1e-9):
                raise UsageError(
                    f"Method {method} needs equal ranks and scales, but {module} has rank {other_rank} and "
                    f"scale {other_scale:g} in {first[module]}, rank {rank} and scale {scale:g} in {name}.",
                    "Compose with --method delta.",
                )
