"""Compose adapters by weight into one plain PEFT LoRA directory, Eq. 4, one module in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from earec_core.compose.adapters import CONFIG, KEY_A, KEY_B, WEIGHTS, LoraAdapter
from earec_core.compose.checks import (
    SumRule,
    check_config,
    check_fit,
    check_layers,
    check_options,
    check_weights,
    layer_of,
)
from earec_core.compose.dense import Dense, low_rank
from earec_core.compose.files import new_directory, write_file
from earec_core.compose.methods import (
    Factors,
    Method,
    Part,
    combine,
    delta,
    distance,
    get_method,
    inner,
    product_norm,
    truncate,
)
from earec_core.compose.peft_config import composite_config
from earec_core.compose.report import ComposeReport, ModuleReport
from earec_core.compose.tensors import Dtype, Stored, decode, encode, write_tensors
from earec_core.errors import UsageError


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
        progress: called with (modules done, modules in all) after each module.

    Returns:
        What was done and how far it is from the exact sum.

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
    run = _Run(row, options, used, layers, parts, rank, dtype, progress)
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
    progress: Callable[[int, int], None] | None
    modules: list[ModuleReport] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)
    squared_error: float = 0.0
    squared_norm: float = 0.0
    squared_truncation: float = 0.0
    squared_result: float = 0.0

    def __post_init__(self) -> None:
        every = sorted({module for adapter in self.adapters.values() for module in adapter.modules})
        self.names = [module for module in every if self._taking(module)]
        self.inner = np.zeros((len(self.adapters), len(self.adapters)))

    @property
    def ranks(self) -> dict[str, int]:
        """The composite's rank by module; only after `tensors` is exhausted."""
        return {module.name: module.rank for module in self.modules}

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
            composed, a, b = self._compose(module)
            self.scales[module] = composed.scale
            yield KEY_A.format(module), a
            yield KEY_B.format(module), b
            if self.progress is not None:
                self.progress(done, len(self.names))

    def _compose(self, module: str) -> tuple[Factors, Stored, Stored]:
        parts: list[Part] = []
        indices: list[int] = []
        weights, rank = self._weights(module), self._shape(module)[1]
        for index, (name, adapter) in enumerate(self.adapters.items()):
            if module in adapter.shapes:
                a, b, scale = adapter.factors(module)
                parts.append(Part(name, module, weights[name], scale, a, b))
                indices.append(index)
        dropped = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below, by name
            result = composed = self._result(module, [part for part in parts if part.weight != 0.0])
            if not isinstance(composed, Factors):
                composed = Factors(*low_rank(composed, rank))
            elif composed.a.shape[0] > rank:
                composed, dropped = truncate(composed, rank)
            a, b = encode(composed.a, self.dtype), encode(composed.b, self.dtype)
        stored = Factors(decode(a, self.dtype), decode(b, self.dtype), composed.scale)
        if not (np.isfinite(stored.a).all() and np.isfinite(stored.b).all()):
            raise UsageError(
                f"The composed factors of {module} are too large for {self.dtype}.",
                "Compose with --dtype float32 or smaller weights.",
            )
        norm = self._add_norms(parts, indices)
        if isinstance(result, Factors):
            # Rounding is orthogonal to what the SVD dropped, to first order.
            truncation = math.hypot(dropped, _rounding(composed, stored))
        else:
            truncation = float(np.linalg.norm(result - stored.b.astype(np.float64) @ stored.a))
        if self.method.exact or self._alone(module):
            error, size = truncation, norm
        else:
            error = distance(delta(parts), stored)
            size = product_norm(result) if isinstance(result, Factors) else float(np.linalg.norm(result))
        self.squared_error += error**2
        self.squared_norm += norm**2
        self.squared_truncation += truncation**2
        self.squared_result += size**2
        self.modules.append(
            ModuleReport(module, stored.a.shape[0], norm, _ratio(error, norm), _ratio(truncation, size))
        )
        return composed, a, b

    def _result(self, module: str, parts: list[Part]) -> Factors | Dense:
        if self._alone(module):
            return Factors(parts[0].a, parts[0].b, parts[0].scale)
        return combine(self.method, parts, self.options)

    def _add_norms(self, parts: list[Part], indices: list[int]) -> float:
        """Add this module to the adapters' inner products; returns ||dW||_F of its exact sum."""
        changes = [Factors(part.a, part.b, part.scale) for part in parts]
        squared = 0.0
        for i, left in enumerate(changes):
            for j, right in enumerate(changes[: i + 1]):
                value = inner(left, right)
                self.inner[indices[i], indices[j]] += value
                squared += (1.0 if i == j else 2.0) * parts[i].weight * parts[j].weight * value
        return math.sqrt(max(0.0, squared))

    def report(self, out: Path, size: int) -> ComposeReport:
        names = list(self.adapters)
        norms = [math.sqrt(max(0.0, self.inner[i, i])) for i in range(len(names))]
        bases = {adapter.config.get("base_model_name_or_path") for adapter in self.adapters.values()}
        return ComposeReport(
            method=self.method.name,
            options=dict(self.options),
            weights=dict(self.weights),
            layer_weights={layer: dict(weights) for layer, weights in self.layer_weights.items()},
            rank=max(module.rank for module in self.modules),
            dtype=self.dtype,
            relative_error=_ratio(math.sqrt(self.squared_error), math.sqrt(self.squared_norm)),
            truncation_error=_ratio(math.sqrt(self.squared_truncation), math.sqrt(self.squared_result)),
            norm=math.sqrt(self.squared_norm),
            norms=dict(zip(names, norms, strict=True)),
            cosines={
                f"{names[j]},{names[i]}": float(self.inner[i, j] / (norms[i] * norms[j] or 1.0))
                for i in range(len(names))
                for j in range(i)
            },
            modules=tuple(self.modules),
            base_models=tuple(sorted(base for base in bases if base)),
            bytes=size,
            path=str(out),
        )


def _rounding(computed: Factors, stored: Factors) -> float:
    """||dW as stored - dW as computed||_F, free of cancellation: dB A' + B dA."""
    d_a, d_b = stored.a - computed.a, stored.b - computed.b
    if not d_a.any():
        return product_norm(Factors(stored.a, d_b, stored.scale)) if d_b.any() else 0.0
    a, b = np.concatenate([stored.a, d_a], axis=0), np.concatenate([d_b, computed.b], axis=1)
    return product_norm(Factors(a, b, stored.scale))


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else (math.inf if error else 0.0)
