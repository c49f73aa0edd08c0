"""What is checked before anything is composed: the weights, and that the adapters fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from earec_core.compose.methods import Method
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import LoraAdapter, layer_of

SumRule = Literal["strict", "normalize", "any"]


def check_weights(
    names: Mapping[str, object], weights: Mapping[str, float], sum_rule: SumRule
) -> dict[str, float]:
    """The weights to use, sorted by name.

    Args:
        names: the adapters, by name.
        weights: lambda by name.
        sum_rule: as in `compose`.

    Raises:
        UsageError: names differ, or the weights break the rule.
    """
    if not names:
        raise UsageError("There is no adapter to compose.", "Give --weights, such as text=0.5,vision=0.5.")
    if missing := sorted(set(names) - set(weights)):
        raise UsageError(f"No weight is given for {', '.join(missing)}.", "Name every adapter in --weights.")
    if unknown := sorted(set(weights) - set(names)):
        raise UsageError(
            f"Weights are given for {', '.join(unknown)}, which is no adapter here.",
            f"The adapters are {', '.join(sorted(names))}.",
        )
    used = {name: float(weights[name]) for name in sorted(names)}
    for name, weight in used.items():
        if not math.isfinite(weight):
            raise UsageError(f"The weight of {name} is {weight}.", "Give a finite number.")
    total = math.fsum(used.values())
    flags = "Pass --normalize to divide by the sum, or --no-normalize to use the weights as they are."
    for name, weight in used.items():
        if sum_rule == "strict" and not 0.0 <= weight <= 1.0:
            raise UsageError(f"The weight of {name}, {weight:g}, is not in [0, 1] (sum {total:.7g}).", flags)
        if sum_rule == "normalize" and weight < 0.0:
            raise UsageError(
                f"The weight of {name}, {weight:g}, is negative.", "Pass --no-normalize to use it as it is."
            )
    if not any(used.values()):
        raise UsageError("Every weight is 0, so nothing is left to compose.", "Give one adapter a weight.")
    if sum_rule == "strict" and abs(total - 1.0) > 1e-6:
        raise UsageError(f"The weights sum to {total:.7g}, not to 1.", flags)
    return {name: weight / total for name, weight in used.items()} if sum_rule == "normalize" else used


def check_layers(
    opened: Mapping[str, LoraAdapter],
    layer_weights: Mapping[int, Mapping[str, float]],
    sum_rule: SumRule,
) -> dict[int, dict[str, float]]:
    """The weights of each layer that has its own, layers and names sorted; every layer obeys the sum rule.

    Raises:
        UsageError: the weights of a layer, named, break the rule, or no adapter changes it.
    """
    known = {layer_of(module) for adapter in opened.values() for module in adapter.modules}
    checked = {}
    for layer in sorted(layer_weights):
        if layer not in known:
            raise UsageError(
                f"Weights are given for layer {layer}, which no adapter changes.",
                "Leave it out; layers count from 0.",
            )
        try:
            checked[layer] = check_weights(opened, layer_weights[layer], sum_rule)
        except UsageError as error:
            raise UsageError(f"Layer {layer}: {error.what}", error.next_step) from error
    return checked


def check_options(method: Method, given: Mapping[str, float | None]) -> dict[str, float]:
    """The options that a method takes: as given, else its defaults.

    Args:
        method: any.
        given: `density` and `seed`; None where it is not given.

    Raises:
        UsageError: one is given that the method does not take, or its value does not fit.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in method.options:
            takes = " and ".join(f"--{option}" for option in method.options) or "neither --density nor --seed"
            raise UsageError(f"Method {method.name} has no --{name}.", f"Leave it out: it takes {takes}.")
    density, seed = options.get("density", 1.0), options.get("seed", 0)
    if not 0.0 < density <= 1.0:
        raise UsageError(f"The density {density:g} is not in (0, 1].", "Give --density such as 0.2.")
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative.", "Give --seed 0 or above.")
    return {**method.options, **options}


def check_fit(opened: Mapping[str, LoraAdapter]) -> None:
    """Raises UsageError when two adapters give one module different shapes."""
    first: dict[str, str] = {}
    for name, adapter in opened.items():
        for module, (d_out, _, d_in) in adapter.shapes.items():
            other = first.setdefault(module, name)
            other_out, _, other_in = opened[other].shapes[module]
            if (other_out, other_in) != (d_out, d_in):
                raise UsageError(
                    f"Adapters {other} and {name} belong to different backbones: {module} is "
                    f"{other_out}x{other_in} (out x in) in {other} and {d_out}x{d_in} in {name}.",
                    "Compose adapters that were aligned on one backbone.",
                )


def check_config(parts: Mapping[str, LoraAdapter], method: Method) -> None:
    """Raises UsageError when the configurations cannot become one, or `method` needs more in common."""
    names = list(parts)
    for key in ("fan_in_fan_out", "task_type"):
        values = [str(value) for name in names if (value := parts[name].config.get(key)) is not None]
        if len(set(values)) > 1:
            raise UsageError(
                f"Adapters {', '.join(names)} differ in {key} ({', '.join(values)}).",
                "Compose adapters that were made for one kind of model.",
            )
    if method.rank != "equal":
        return
    first: dict[str, str] = {}
    for name in names:
        for module, (_, rank, _) in parts[name].shapes.items():
            other = first.setdefault(module, name)
            mine, theirs = (
                (rank, parts[name].scale(module)),
                (parts[other].shapes[module][1], parts[other].scale(module)),
            )
            if mine[0] != theirs[0] or not math.isclose(mine[1], theirs[1], rel_tol=1e-9):
                raise UsageError(
                    f"Method {method.name} needs equal ranks and scales, but {module} has rank "
                    f"{theirs[0]} and scale {theirs[1]:g} in {other}, rank {mine[0]} and scale {mine[1]:g} "
                    f"in {name}.",
                    "Compose with --method delta.",
                )
