"""Compose adapters by weight into one plain PEFT LoRA directory, Eq. 4, one module in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from earec_core.compose.checks import check_adapters
from earec_core.compose.dense import Dense, low_rank
from earec_core.compose.factors import Factors, Part
from earec_core.compose.measure import ComposeReport, Measure
from earec_core.compose.methods import combine, delta, stack, stack_stored, truncate
from earec_core.compose.peft_config import composite_config
from earec_core.compose.recipe import Recipe, check_names
from earec_core.errors import UsageError
from earec_core.files import new_directory
from earec_core.llm.peft_adapter import CONFIG, KEY_A, KEY_B, WEIGHTS, LoraAdapter
from earec_core.llm.tensors import Dtype, from_array, is_finite, to_array, write_tensors

Progress = Callable[[int, int], None]


def compose(
    adapters: Mapping[str, Path], recipe: Recipe, out: Path, *, progress: Progress = lambda *_: None
) -> ComposeReport:
    """Merge adapters by weight, theta_merge = sum lambda_i theta_i (Eq. 4), into a plain PEFT directory.

    The result's bytes depend on names, weights and tensors, not on the mappings' order. A single adapter left
    at weight 1 keeps its A, B, r and alpha bit for bit.

    Args:
        adapters: PEFT LoRA directory by name.
        recipe: weights by the same names, method and options.
        out: the directory to write; it must not exist, or be empty. It appears complete or not at all.
        progress: called with (modules done, modules in all) after each module.

    Returns:
        What was done and, if measured, how far it is from the exact sum.

    Raises:
        UsageError: names or `out` do not fit, or the adapters do not fit each other.
        PluginError: the method is a plugin's, and failing.
        IntegrityError: an adapter is damaged or holds NaN or infinite numbers.
        EarecError: the directory cannot be written.
    """
    check_names(recipe.weights, adapters)
    opened = {name: LoraAdapter.open(adapters[name]) for name in recipe.used}
    check_adapters(opened, recipe)
    merge = _Merge(recipe, {name: opened[name] for name in recipe.taking}, progress)
    ranks = {module: rank for module, (_, rank, _) in merge.shapes.items()}
    if not ranks:
        raise UsageError(
            "Every adapter has weight 0 in the layers that it changes.", "Give one of them a weight there."
        )
    with new_directory(out, "composite") as folder:
        size = write_tensors(folder / WEIGHTS, merge.header(), merge.dtype, merge.tensors())
        config = composite_config(list(merge.adapters.values()), ranks, merge.scales)
        text = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        (folder / CONFIG).write_bytes(text)
    return ComposeReport(
        method=recipe.method,
        options=recipe.options,
        weights=recipe.used,
        layer_weights=recipe.used_layers,
        rank=max(ranks.values()),
        dtype=merge.dtype,
        bytes=size + len(text),
        path=str(out),
        **(merge.measure.figures() if merge.measure else {}),
    )


class _Merge:
    """One composition, while its modules stream to the file.

    Attributes:
        adapters: those that have a weight somewhere.
        dtype: how the composite is stored.
        shapes: its (d_out, r, d_in) by module, modules in alphabetical order.
        scales: the factor in front of B @ A of those done so far.
        measure: the sums over those done so far; None where nothing is measured.
    """

    def __init__(self, recipe: Recipe, adapters: Mapping[str, LoraAdapter], progress: Progress) -> None:
        self.recipe, self.adapters, self.progress = recipe, adapters, progress
        dtypes = {adapter.dtype for adapter in adapters.values()}
        same: Dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        self.dtype: Dtype = same if recipe.dtype == "same" else recipe.dtype
        modules = sorted({module for adapter in adapters.values() for module in adapter.shapes})
        self.shapes = {module: self._shape(module) for module in modules if self._taking(module)}
        self.scales: dict[str, float] = {}
        self.measure = Measure(tuple(adapters), recipe.arithmetic.exact) if recipe.measure else None

    def header(self) -> dict[str, tuple[int, ...]]:
        """The composite's tensors, in the order of its file."""
        header: dict[str, tuple[int, ...]] = {}
        for module, (d_out, rank, d_in) in self.shapes.items():
            header |= {KEY_A.format(module): (rank, d_in), KEY_B.format(module): (d_out, rank)}
        return header

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Compose module after module; yields A, then B, as they are stored."""
        for done, module in enumerate(self.shapes, 1):
            yield from zip((KEY_A.format(module), KEY_B.format(module)), self._compose(module), strict=True)
            self.progress(done, len(self.shapes))

    def _taking(self, module: str) -> list[str]:
        """The adapters that change a module, at a weight that is not 0."""
        weights = self.recipe.at(module)
        return [n for n, adapter in self.adapters.items() if module in adapter.shapes and weights[n] != 0.0]

    def _ranks(self, module: str) -> list[int]:
        return [self.adapters[name].shapes[module][1] for name in self._taking(module)]

    def _shape(self, module: str) -> tuple[int, int, int]:
        """d_out, the composite's rank and d_in."""
        d_out, rank, d_in = self.adapters[self._taking(module)[0]].shapes[module]
        rule, limit = self.recipe.arithmetic.rank, self.recipe.rank
        if rule != "equal":
            rank = sum(self._ranks(module))
        if rule == "dense" and not self.recipe.alone(module):
            rank = min(limit or rank, d_out, d_in)
        elif limit is not None and limit < rank:
            rank = min(limit, d_out, d_in)
        return d_out, rank, d_in

    def _compose(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B as they are stored; notes the scale and measures."""
        read = {n: adapter.stored(module) for n, adapter in self.adapters.items() if module in adapter.shapes}
        if self._stacks(module):
            names, weights = self._taking(module), self.recipe.at(module)
            scaled = [weights[name] * self.adapters[name].scales[module] for name in names]
            a, b = stack_stored([read[name] for name in names], scaled)
            self._check_finite(module, b)
            self.scales[module] = 1.0
            if self.measure is not None:
                parts = self._parts(module, read)
                exact = stack([part for part in parts if part.weight != 0.0])
                self.measure.add(module, parts, exact, exact, Factors(to_array(a), to_array(b)))
            return a, b
        parts, rank, dropped = self._parts(module, read), self.shapes[module][1], 0.0
        taking = [part for part in parts if part.weight != 0.0]
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below, by name
            if self.recipe.alone(module):
                result: Factors | Dense = delta(taking)
            else:
                result = combine(self.recipe.arithmetic, taking, self.recipe.options)
            composed = result
            if not isinstance(composed, Factors):
                composed = Factors(*low_rank(composed, rank))
            elif len(composed.a) > rank:
                composed, dropped = truncate(composed, rank)
        a, b = from_array(composed.a, self.dtype), from_array(composed.b, self.dtype)
        self._check_finite(module, a, b)
        self.scales[module] = composed.scale
        if self.measure is not None:
            stored = Factors(to_array(a), to_array(b), composed.scale)
            self.measure.add(module, parts, result, composed, stored, dropped)
        return a, b

    def _stacks(self, module: str) -> bool:
        """Whether the result is the stored factors side by side, which needs no float32 copy of A."""
        delta_here = self.recipe.arithmetic.combine is delta and not self.recipe.alone(module)
        same = all(self.adapters[name].dtype == self.dtype for name in self._taking(module))
        return delta_here and same and self.shapes[module][1] == sum(self._ranks(module))

    def _parts(self, module: str, read: Mapping[str, tuple[Tensor, Tensor]]) -> list[Part]:
        weights, adapters = self.recipe.at(module), self.adapters
        return [
            Part(name, module, weights[name], adapters[name].scales[module], to_array(a), to_array(b))
            for name, (a, b) in read.items()
        ]

    def _check_finite(self, module: str, *factors: Tensor) -> None:
        if not all(is_finite(factor) for factor in factors):
            raise UsageError(
                f"The composed factors of {module} are too large for {self.dtype}.",
                "Compose with smaller weights, or into float32 (`dtype` of the recipe).",
            )
