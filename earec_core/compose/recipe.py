"""What to compose: weights, a method and its options, checked as soon as they are written down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from earec_core.compose.methods import Method, get_method
from earec_core.errors import UsageError
from earec_core.llm.peft_adapter import layer_of
from earec_core.llm.tensors import Dtype

SumRule = Literal["strict", "normalize", "any"]


@dataclass(frozen=True)
class Recipe:
    """A composition, for any adapters of these names; one that exists is valid.

    Attributes:
        weights: lambda by adapter, as given; see `used`.
        method: a key of `METHODS`, or the name of a plugin's method.
        rank: truncate each module to at most this rank (SVD); None keeps the method's rank. A dense method is
            stored at this rank, None meaning the sum of the ranks.
        density, seed: options of those methods that take them; None leaves the method's default.
        layer_weights: lambda by adapter for single layers, as given: it goes before `weights` in modules that
            are named `...layers.<n>...` or `...h.<n>...`. Each layer obeys `sum_rule`.
        sum_rule: "strict" wants weights in [0, 1] with sum 1 (within 1e-6); "normalize" divides weights that
            are not negative by their sum; "any" takes them as they are.
        dtype: how to store the factors; "same" keeps the adapters', or float32 where they differ.
        measure: whether to measure norms, cosines and errors for the report, which takes most of the time at
            high ranks; the result is the same without.

    Raises:
        UsageError: the method, its options, or the weights (of a layer, named) do not fit.
        PluginError: the method is a plugin's, and unusable.
    """

    weights: Mapping[str, float]
    method: str = "delta"
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    layer_weights: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    sum_rule: SumRule = "strict"
    dtype: Dtype | Literal["same"] = "same"
    measure: bool = True

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"Rank {self.rank} leaves nothing.", "Give --rank a positive number.")
        _ = self.options, self.used, self.used_layers

    @cached_property
    def arithmetic(self) -> Method:
        """The method."""
        return get_method(self.method)

    @cached_property
    def options(self) -> dict[str, float]:
        """The options that the method takes: as given, else its defaults."""
        given = {"density": self.density, "seed": self.seed}
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in self.arithmetic.options:
                takes = " and ".join(f"--{option}" for option in self.arithmetic.options)
                raise UsageError(
                    f"Method {self.method} has no --{name}.",
                    f"Leave it out: it takes {takes or 'neither --density nor --seed'}.",
                )
        density, seed = options.get("density", 1.0), options.get("seed", 0)
        if not 0.0 < density <= 1.0:
            raise UsageError(f"The density {density:g} is not in (0, 1].", "Give --density such as 0.2.")
        if seed < 0:
            raise UsageError(f"The seed {seed} is negative.", "Give --seed 0 or above.")
        return {**self.arithmetic.options, **options}

    @cached_property
    def used(self) -> dict[str, float]:
        """The weights to use, sorted by adapter."""
        return _checked(self.weights, self.sum_rule)

    @cached_property
    def used_layers(self) -> dict[int, dict[str, float]]:
        """The weights to use of each layer that has its own, layers and adapters sorted."""
        layers = {}
        for layer, weights in sorted(self.layer_weights.items()):
            try:
                check_names(weights, self.weights)
                layers[layer] = _checked(weights, self.sum_rule)
            except UsageError as error:
                raise UsageError(f"Layer {layer}: {error.problem}", error.next_step) from error
        return layers

    def as_json(self) -> dict[str, Any]:
        """What the result depends on beside the adapters."""
        return {
            "weights": self.used,
            "layer_weights": {str(layer): weights for layer, weights in self.used_layers.items()},
            "method": self.method,
            "options": self.options,
            "rank": self.rank,
            "dtype": self.dtype,
            "measure": self.measure,
        }

    @property
    def taking(self) -> list[str]:
        """The adapters that have a weight somewhere, sorted."""
        return [name for name in self.used if any(w[name] for w in (self.used, *self.used_layers.values()))]

    def at(self, module: str) -> Mapping[str, float]:
        """The weights to use in a module, sorted by adapter."""
        layer = layer_of(module)
        return self.used if layer is None else self.used_layers.get(layer, self.used)

    def alone(self, module: str) -> bool:
        """Whether one adapter is left in a module, at weight 1; it comes back as it is."""
        return [weight for weight in self.at(module).values() if weight != 0.0] == [1.0]


def check_names(weights: Iterable[str], adapters: Iterable[str]) -> None:
    """Raises UsageError unless the weights are those of the adapters."""
    named, known = set(weights), set(adapters)
    if missing := sorted(known - named):
        raise UsageError(f"No weight is given for {', '.join(missing)}.", "Name every adapter in --weights.")
    if unknown := sorted(named - known):
        raise UsageError(
            f"Weights are given for {', '.join(unknown)}, which is no adapter here.",
            f"The adapters are {', '.join(sorted(known))}.",
        )


def _checked(weights: Mapping[str, float], rule: SumRule) -> dict[str, float]:
    """The weights to use, sorted by name; UsageError where they break the rule."""
    if not weights:
        raise UsageError("There is no adapter to compose.", "Give --weights, such as text=0.5,vision=0.5.")
    used = {name: float(weight) for name, weight in sorted(weights.items())}
    for name, weight in used.items():
        if not math.isfinite(weight):
            raise UsageError(f"The weight of {name} is {weight}.", "Give a finite number.")
    total = math.fsum(used.values())
    flags = "Pass --normalize to divide by the sum, or --no-normalize to use the weights as they are."
    for name, weight in used.items():
        if rule == "strict" and not 0.0 <= weight <= 1.0:
            raise UsageError(f"The weight of {name}, {weight:g}, is not in [0, 1] (sum {total:.7g}).", flags)
        if rule == "normalize" and weight < 0.0:
            raise UsageError(
                f"The weight of {name}, {weight:g}, is negative.", "Pass --no-normalize to use it as it is."
            )
    if not any(used.values()):
        raise UsageError("Every weight is 0, so nothing is left to compose.", "Give one adapter a weight.")
    if rule == "strict" and abs(total - 1.0) > 1e-6:
        raise UsageError(f"The weights sum to {total:.7g}, not to 1.", flags)
    return {name: weight / total for name, weight in used.items()} if rule == "normalize" else used
