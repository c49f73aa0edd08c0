"""Compose adapters by weight into one plain PEFT LoRA directory, Eq. 4, one module in memory at a time."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from earec_core.compose.adapters import CONFIG, KEY_A, KEY_B, WEIGHTS, LoraAdapter
from earec_core.compose.methods import METHODS, Factors, Method, Part, distance, inner, product_norm, truncate
from earec_core.compose.tensors import Dtype, Stored, decode, encode, write_tensors
from earec_core.errors import EarecError, UsageError

SumRule = Literal["strict", "normalize", "any"]

_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One composed module.

    Attributes:
        name: the module's name in the base model.
        rank: its rank in the composite.
        norm: ||dW||_F of the exact sum.
        relative_error: ||composed - exact||_F / ||exact||_F.
    """

    name: str
    rank: int
    norm: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class ComposeReport:
    """What a composition did; `dataclasses.asdict` makes it JSON.

    Attributes:
        method: the method's name.
        weights: the weights used (after `normalize`), by adapter; those at 0 took no part.
        rank: the composite's `r`, the largest of its modules'.
        dtype: how its factors are stored.
        relative_error: ||composed - exact||_F / ||exact||_F over all modules together, truncation and
            rounding to a half-precision `dtype` included; 0 means exact to float32 rounding.
        norm: ||dW||_F of the exact sum over all modules.
        norms: ||dW_i||_F of each adapter that took part, its scale included, its weight not.
        cosines: cosine between two adapters' dW over all modules, by "first,second"; 0 where one is zero.
        modules: every module, in alphabetical order.
        base_models: the base models that the adapters name, sorted; more than one deserves a look.
        bytes: size of the composite's two files.
        path: the directory written.
    """

    method: str
    weights: dict[str, float]
    rank: int
    dtype: Dtype
    relative_error: float
    norm: float
    norms: dict[str, float]
    cosines: dict[str, float]
    modules: tuple[ModuleReport, ...]
    base_models: tuple[str, ...]
    bytes: int
    path: str


def compose(
    adapters: Mapping[str, Path],
    weights: Mapping[str, float],
    out: Path,
    *,
    method: str = "delta",
    rank: int | None = None,
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
        method: a key of `METHODS`.
        rank: truncate each module to at most this rank (SVD); None keeps the method's rank.
        sum_rule: "strict" wants weights in [0, 1] with sum 1 (within 1e-6); "normalize" divides weights that
            are not negative by their sum; "any" takes them as they are.
        dtype: how to store the factors; "same" keeps the adapters', or float32 where they differ.
        progress: called with (modules done, modules in all) after each module.

    Returns:
        What was done and how far it is from the exact sum.

    Raises:
        UsageError: weights, names, method, rank or `out` do not fit, or the adapters do not fit each other.
        IntegrityError: an adapter is damaged or holds NaN or infinite numbers.
        EarecError: the directory cannot be written.
    """
    row = METHODS.get(method)
    if row is None:
        raise UsageError(
            f"There is no composition method {method!r}.", f"Choose one of {', '.join(METHODS)}."
        )
    if rank is not None and rank < 1:
        raise UsageError(f"Rank {rank} leaves nothing.", "Give --rank a positive number.")
    used = check_weights(adapters, weights, sum_rule)
    opened = {name: LoraAdapter.open(adapters[name]) for name in used}
    _check_fit(opened)
    parts = {name: opened[name] for name, weight in used.items() if weight != 0.0}
    _check_config(parts, row)
    if dtype == "same":
        stored = {adapter.dtype for adapter in parts.values()}
        dtype = stored.pop() if len(stored) == 1 else "float32"
    run = _Run(row, used, parts, rank, dtype, progress)
    size = _write(out, run)
    return run.report(out, size)


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


def _check_fit(opened: Mapping[str, LoraAdapter]) -> None:
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


def _check_config(parts: Mapping[str, LoraAdapter], method: Method) -> None:
    """Raises UsageError when the configurations cannot become one, or `method` needs more in common."""
    names = list(parts)
    for key in ("fan_in_fan_out", "task_type"):
        values = [str(value) for name in names if (value := parts[name].config.get(key)) is not None]
        if len(set(values)) > 1:
            raise UsageError(
                f"Adapters {', '.join(names)} differ in {key} ({', '.join(values)}).",
                "Compose adapters that were made for one kind of model.",
            )
    if method.rank == "sum":
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


@dataclass
class _Run:
    """The running sums of one composition, filled while its modules stream to the file."""

    method: Method
    weights: Mapping[str, float]
    adapters: Mapping[str, LoraAdapter]
    max_rank: int | None
    dtype: Dtype
    progress: Callable[[int, int], None] | None
    modules: list[ModuleReport] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)
    squared_error: float = 0.0
    squared_norm: float = 0.0

    def __post_init__(self) -> None:
        self.names = sorted({module for adapter in self.adapters.values() for module in adapter.modules})
        self.inner = np.zeros((len(self.adapters), len(self.adapters)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The composite's tensors, in the order of its file."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module in self.names:
            found = [adapter.shapes[module] for adapter in self.adapters.values() if module in adapter.shapes]
            d_out, full, d_in = found[0][0], self._full_rank(module), found[0][2]
            rank = full if self.max_rank is None or full <= self.max_rank else min(self.max_rank, d_out, d_in)
            shapes[KEY_A.format(module)] = (rank, d_in)
            shapes[KEY_B.format(module)] = (d_out, rank)
        return shapes

    def _full_rank(self, module: str) -> int:
        ranks = [adapter.shapes[module][1] for adapter in self.adapters.values() if module in adapter.shapes]
        return sum(ranks) if self.method.rank == "sum" else ranks[0]

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
        for index, (name, adapter) in enumerate(self.adapters.items()):
            if module in adapter.shapes:
                a, b, scale = adapter.factors(module)
                parts.append(Part(name, module, self.weights[name], scale, a, b))
                indices.append(index)
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below, by name
            composed, dropped = self.method.combine(parts), 0.0
            if self.max_rank is not None and composed.a.shape[0] > self.max_rank:
                composed, dropped = truncate(composed, self.max_rank)
            a, b = encode(composed.a, self.dtype), encode(composed.b, self.dtype)
        stored = Factors(decode(a, self.dtype), decode(b, self.dtype), composed.scale)
        if not (np.isfinite(stored.a).all() and np.isfinite(stored.b).all()):
            raise UsageError(
                f"The composed factors of {module} are too large for {self.dtype}.",
                "Compose with --dtype float32 or smaller weights.",
            )
        norm = self._add_norms(parts, indices)
        if self.method.exact:
            # Rounding is orthogonal to what the SVD dropped, to first order.
            error = math.hypot(dropped, _rounding(composed, stored))
        else:
            error = distance(METHODS["delta"].combine(parts), stored)
        self.squared_error += error**2
        self.squared_norm += norm**2
        self.modules.append(ModuleReport(module, stored.a.shape[0], norm, _ratio(error, norm)))
        return composed, a, b

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

    def config(self) -> dict[str, Any]:
        """The composite's `adapter_config.json`; only after `tensors` is exhausted."""
        adapters = list(self.adapters.values())
        ranks = {module.name: module.rank for module in self.modules}
        if len(adapters) == 1 and all(
            ranks[module] == adapters[0].shapes[module][1]
            and self.scales[module] == adapters[0].scale(module)
            for module in ranks
        ):
            return {
                **adapters[0].config,
                "init_lora_weights": True,
                "eva_config": None,
                "inference_mode": True,
            }
        r = max(ranks.values())
        alphas = {module: self.scales[module] * rank for module, rank in ranks.items()}
        alpha = alphas[next(module for module in ranks if ranks[module] == r)]
        selections = [{key: adapter.config.get(key) for key in _SELECTION} for adapter in adapters]
        same = all(
            _canonical(selection) == _canonical(selections[0]) and adapter.modules == adapters[0].modules
            for adapter, selection in zip(adapters, selections, strict=True)
        )
        # Full names where the adapters chose different modules: a short name could match too many.
        selection = selections[0] if same else {**dict.fromkeys(_SELECTION), "target_modules": sorted(ranks)}
        if isinstance(selection["target_modules"], list):
            selection["target_modules"] = sorted(selection["target_modules"])
        return {
            "peft_type": "LORA",
            "task_type": _common(adapters, "task_type"),
            "auto_mapping": _common(adapters, "auto_mapping"),
            "base_model_name_or_path": _common(adapters, "base_model_name_or_path"),
            "revision": _common(adapters, "revision"),
            "inference_mode": True,
            "r": r,
            "lora_alpha": _integral(alpha),
            "use_rslora": False,
            "rank_pattern": {_exactly(module): rank for module, rank in ranks.items() if rank != r},
            "alpha_pattern": {
                _exactly(name): _integral(value) for name, value in alphas.items() if value != alpha
            },
            "lora_dropout": _common(adapters, "lora_dropout") or 0.0,
            "bias": "none",
            "fan_in_fan_out": bool(_common(adapters, "fan_in_fan_out")),
            "init_lora_weights": True,
            **selection,
        }

    def report(self, out: Path, size: int) -> ComposeReport:
        names = list(self.adapters)
        norms = [math.sqrt(max(0.0, self.inner[i, i])) for i in range(len(names))]
        bases = {adapter.config.get("base_model_name_or_path") for adapter in self.adapters.values()}
        return ComposeReport(
            method=self.method.name,
            weights=dict(self.weights),
            rank=max(module.rank for module in self.modules),
            dtype=self.dtype,
            relative_error=_ratio(math.sqrt(self.squared_error), math.sqrt(self.squared_norm)),
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


def _write(out: Path, run: _Run) -> int:
    """Write the composite beside `out`, then rename it; returns its size in bytes."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already.", "Name a new directory, or remove this one first.")
    temporary = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir(parents=True)
        size = write_tensors(temporary / WEIGHTS, run.shapes(), run.dtype, run.tensors())
        text = (json.dumps(run.config(), indent=2, sort_keys=True) + "\n").encode()
        with (temporary / CONFIG).open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync(temporary)
        temporary.replace(out)
        _sync(out.parent)
    except OSError as error:
        raise EarecError(
            f"The composite could not be written to {out} ({error.strerror or error}).",
            "Free some space or name another directory, then run again.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size + len(text)


def _sync(directory: Path) -> None:
    """Make a directory's entries survive a power cut; Windows cannot open a directory and needs no sync."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _rounding(computed: Factors, stored: Factors) -> float:
    """||dW as stored - dW as computed||_F, free of cancellation: dB A' + B dA."""
    d_a, d_b = stored.a - computed.a, stored.b - computed.b
    if not d_a.any():
        return product_norm(Factors(stored.a, d_b, stored.scale)) if d_b.any() else 0.0
    a, b = np.concatenate([stored.a, d_a], axis=0), np.concatenate([d_b, computed.b], axis=1)
    return product_norm(Factors(a, b, stored.scale))


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else (math.inf if error else 0.0)


def _canonical(selection: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if isinstance(value, list) else value for key, value in selection.items()}


def _common(adapters: list[LoraAdapter], key: str) -> Any:
    """The value that all adapters which have one agree on; else None."""
    values = [value for adapter in adapters if (value := adapter.config.get(key)) is not None]
    return values[0] if values and all(value == values[0] for value in values) else None


def _exactly(module: str) -> str:
    """A PEFT pattern that matches this module alone (PEFT matches the end of a name otherwise)."""
    return "^" + re.escape(module)


def _integral(value: float) -> int | float:
    return int(value) if value.is_integer() else value
