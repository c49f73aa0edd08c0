"""Compose adapters by weight into one plain PEFT LoRA directory, Eq. 4, one module in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from earec_core.compose.checks import (
    SumRule,
    check_config,
    check_fit,
    check_layers,
    check_options,
    check_weights,
)
from earec_core.compose.dense import Dense, low_rank
from earec_core.compose.factors import Factors, Part
from earec_core.compose.measure import Measure
from earec_core.compose.methods import (
    Method,
    combine,
    delta,
    delta_encoded,
    get_method,
    stacked,
    truncate,
)
from earec_core.compose.peft_config import composite_config
from earec_core.compose.report import ComposeReport
from earec_core.errors import UsageError
from earec_core.files import new_directory, write_file
from earec_core.llm.peft_adapter import CONFIG, KEY_A, KEY_B, WEIGHTS, LoraAdapter, layer_of
from earec_core.llm.tensors import Dtype, Stored, decode, encode, is_finite, write_tensors


def compose(
    adapters: Mapping[str, Path],
    weights: Mapping[str, float],
    out: Path,
    *,
    method: str = "delta",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    layer_weights: Mapping[int, Mapping[str, float]] | None = None,
    sum_rule: SumRule = "strict",
    dtype: Dtype | Literal["same"] = "same",
    measure: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ComposeReport:
    """Merge adapters by weight, theta_merge = sum lambda_i theta_i (Eq. 4), into a plain PEFT directory.

    The result's bytes depend on names, weights and tensors, not on the mappings' order. A single adapter left
    at weight 1 keeps its A, B, r and alpha bit for bit.

    Args:
        adapters: PEFT LoRA directory by name.
        weights: lambda by the same names.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        method: a key of `METHODS`, or the name of a plugin's method.
        rank: truncate each module to at most this rank (SVD); None keeps the method's rank. A dense method is
            stored at this rank, None meaning the sum of the ranks.
        density, seed: options of those methods that take them; None leaves the method's default.
        layer_weights: lambda by name for single layers: it goes before `weights` in modules that are named
            `...layers.<n>...` or `...h.<n>...`. Each layer obeys `sum_rule`.
        sum_rule: "strict" wants weights in [0, 1] with sum 1 (within 1e-6); "normalize" divides weights that
            are not negative by their sum; "any" takes them as they are.
        dtype: how to store the factors; "same" keeps the adapters', or float32 where they differ.
        measure: whether to measure norms, cosines and errors for the report, which takes most of the time at
            high ranks; the result is the same without.
        progress: called with (modules done, modules in all) after each module.

    Returns:
        What was done and, if measured, how far it is from the exact sum.

    Raises:
        UsageError: weights, names, method, options or `out` do not fit, or the adapters do not fit each other.
        PluginError: the method is a plugin's, and unusable or failing.
        IntegrityError: an adapter is damaged or holds NaN or infinite numbers.
        EarecError: the directory cannot be written.
    """
    row = get_method(method)
    if rank is not None and rank < 1:
        raise UsageError(f"Rank {rank} leaves nothing.", "Give --rank a positive number.")
    options = check_options(row, {"density": density, "seed": seed})
    used = check_weights(adapters, weights, sum_rule)
    opened = {name: LoraAdapter.open(adapters[name]) for name in used}
    check_fit(opened)
    layers = check_layers(opened, layer_weights or {}, sum_rule)
    parts = {name: opened[name] for name in used if any(w[name] for w in (used, *layers.values()))}
    check_config(parts, row)
    if dtype == "same":
        stored = {adapter.dtype for adapter in parts.values()}
        dtype = stored.pop() if len(stored) == 1 else "float32"
    measured = Measure(tuple(parts), row.exact) if measure else None
    run = _Run(row, options, used, layers, parts, rank, dtype, measured, progress)
    with new_directory(out, "composite") as folder:
        size = write_tensors(folder / WEIGHTS, run.shapes(), run.dtype, run.tensors())
        config = composite_config(list(parts.values()), run.ranks, run.scales)
        text = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        write_file(folder / CONFIG, text)
    return run.report(out, size + len(text))


@dataclass
class _Run:
    """The running sums of one composition, filled while its modules stream to the file."""

    method: Method
    options: Mapping[str, float]
    weights: Mapping[str, float]
    layer_weights: Mapping[int, Mapping[str, float]]
    adapters: Mapping[str, LoraAdapter]
    max_rank: int | None
    dtype: Dtype
    measure: Measure | None
    progress: Callable[[int, int], None] | None
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = sorted({module for adapter in self.adapters.values() for module in adapter.modules})
        self.names = [module for module in every if self._taking(module)]

    @property
    def ranks(self) -> dict[str, int]:
        """The composite's rank by module."""
        return {module: self._shape(module)[1] for module in self.names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The composite's tensors, in the order of its file."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module in self.names:
            d_out, rank, d_in = self._shape(module)
            shapes[KEY_A.format(module)] = (rank, d_in)
            shapes[KEY_B.format(module)] = (d_out, rank)
        return shapes

    def _shape(self, module: str) -> tuple[int, int, int]:
        """d_out, the composite's rank and d_in of a module."""
        found = [self.adapters[name].shapes[module] for name in self._taking(module)]
        d_out, own, d_in = found[0]
        full = own if self.method.rank == "equal" else sum(rank for _, rank, _ in found)
        if self.method.rank == "dense" and not self._alone(module):
            return d_out, min(self.max_rank or full, d_out, d_in), d_in
        if self.max_rank is None or full <= self.max_rank:
            return d_out, full, d_in
        return d_out, min(self.max_rank, d_out, d_in), d_in

    def _weights(self, module: str) -> Mapping[str, float]:
        layer = layer_of(module)
        return self.weights if layer is None else self.layer_weights.get(layer, self.weights)

    def _taking(self, module: str) -> list[str]:
        """The adapters that change this module, at a weight that is not 0."""
        weights = self._weights(module)
        return [n for n, adapter in self.adapters.items() if module in adapter.shapes and weights[n] != 0.0]

    def _alone(self, module: str) -> bool:
        """Whether one adapter is left here, at weight 1."""
        return [weight for weight in self._weights(module).values() if weight != 0.0] == [1.0]

    def tensors(self) -> Iterator[tuple[str, Stored]]:
        """Compose module after module; yields A, then B, encoded."""
        for done, module in enumerate(self.names, 1):
            a, b = self._compose(module)
            yield KEY_A.format(module), a
            yield KEY_B.format(module), b
            if self.progress is not None:
                self.progress(done, len(self.names))

    def _compose(self, module: str) -> tuple[Stored, Stored]:
        """The module's A and B as they are stored; notes its scale and measures it."""
        weights = self._weights(module)
        stored = {name: one.stored(module) for name, one in self.adapters.items() if module in one.shapes}
        if self._stacks(module):
            a, b = delta_encoded(
                [(*stored[n], weights[n] * self.adapters[n].scale(module)) for n in self._taking(module)],
                self.dtype,
            )
            self.scales[module] = 1.0
            self._check_finite(module, b)
            if self.measure is not None:
                parts = self._parts(module, stored)
                exact = stacked([part for part in parts if part.weight != 0.0])
                self.measure.add(module, parts, exact, exact, self._decoded(module, a, b))
            return a, b
        parts, dropped = self._parts(module, stored), 0.0
        rank = self._shape(module)[1]
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below, by name
            result = composed = self._result(module, [part for part in parts if part.weight != 0.0])
            if not isinstance(composed, Factors):
                composed = Factors(*low_rank(composed, rank))
            elif composed.a.shape[0] > rank:
                composed, dropped = truncate(composed, rank)
            a, b = encode(composed.a, self.dtype), encode(composed.b, self.dtype)
        self.scales[module] = composed.scale
        self._check_finite(module, a, b)
        if self.measure is not None:
            self.measure.add(module, parts, result, composed, self._decoded(module, a, b), dropped)
        return a, b

    def _stacks(self, module: str) -> bool:
        """Whether the result is the stored factors side by side, which needs no decoding of A."""
        taking = self._taking(module)
        return (
            self.method.combine is delta
            and not self._alone(module)
            and self._shape(module)[1] == sum(self.adapters[name].shapes[module][1] for name in taking)
            and all(self.adapters[name].dtype == self.dtype for name in taking)
        )

    def _parts(self, module: str, stored: Mapping[str, tuple[Stored, Stored]]) -> list[Part]:
        weights = self._weights(module)
        found = []
        for name, (a, b) in stored.items():
            adapter = self.adapters[name]
            factors = decode(a, adapter.dtype), decode(b, adapter.dtype)
            found.append(Part(name, module, weights[name], adapter.scale(module), *factors))
        return found

    def _decoded(self, module: str, a: Stored, b: Stored) -> Factors:
        return Factors(decode(a, self.dtype), decode(b, self.dtype), self.scales[module])

    def _result(self, module: str, parts: list[Part]) -> Factors | Dense:
        if self._alone(module):
            return Factors(parts[0].a, parts[0].b, parts[0].scale)
        return combine(self.method, parts, self.options)

    def _check_finite(self, module: str, *factors: Stored) -> None:
        if not all(is_finite(one, self.dtype) for one in factors):
            raise UsageError(
                f"The composed factors of {module} are too large for {self.dtype}.",
                "Compose with --dtype float32 or smaller weights.",
            )

    def report(self, out: Path, size: int) -> ComposeReport:
        measured = self.measure
        bases = {adapter.config.get("base_model_name_or_path") for adapter in self.adapters.values()}
        return ComposeReport(
            method=self.method.name,
            options=dict(self.options),
            weights=dict(self.weights),
            layer_weights={layer: dict(weights) for layer, weights in self.layer_weights.items()},
            rank=max(self.ranks.values()),
            dtype=self.dtype,
            relative_error=measured.relative_error if measured else None,
            truncation_error=measured.truncation_error if measured else None,
            norm=measured.norm if measured else None,
            norms=measured.norms if measured else {},
            cosines=measured.cosines if measured else {},
            modules=tuple(measured.modules) if measured else (),
            base_models=tuple(sorted(base for base in bases if base)),
            bytes=size,
            path=str(out),
        )
