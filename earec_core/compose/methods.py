"""The methods of composition, Eq. 4: named arithmetic on the factors of one module.

A method reads like a row of a table and knows nothing of files. Another one is registered with
`METHODS[name] = Method(...)`, or installed: a plugin of the kind `METHOD`, an entry point that yields a `Method`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from earec_core import plugins
from earec_core.compose.dense import Dense, dare, ties
from earec_core.compose.factors import Factors, Part, product_norm
from earec_core.errors import EarecError, PluginError, UsageError


@dataclass(frozen=True)
class Method:
    """A named way to compose.

    Attributes:
        name: what `--method` takes.
        summary: its arithmetic, for a listing.
        rank: "sum" where the composed rank is the sum of the parts' ranks; "equal" where the method needs
            equal ranks and scales, and keeps them; "dense" where `combine` gives dW itself, which is then
            stored as factors of `--rank`, by default of the sum of the ranks.
        exact: whether the result is sum of weight * scale * B @ A.
        combine: from the parts of one module (of the adapters that have it, sorted by name), and `options` by
            name, to its factors, or to dW [d_out, d_in] in float64 if `rank` is "dense". It is not asked where
            one adapter is left, at weight 1: that one comes back as it is.
        options: the options that it takes, of `density` and `seed`, and their defaults.
        routed: whether a composite keeps the parts too, each for its own modality's tokens.
    """

    name: str
    summary: str
    rank: Literal["sum", "equal", "dense"]
    exact: bool
    combine: Callable[..., Factors | Dense]
    options: Mapping[str, float] = field(default_factory=dict)
    routed: bool = False

    def __post_init__(self) -> None:
        if self.rank not in ("sum", "equal", "dense") or not set(self.options) <= {"density", "seed"}:
            raise ValueError(f"{self.name}: rank is {self.rank!r}, options are {sorted(self.options)}")


def delta(parts: Sequence[Part]) -> Factors:
    """The exact sum: rows of A stacked, columns of B scaled and stacked; one part at weight 1 stays."""
    if len(parts) == 1 and parts[0].weight == 1.0:
        return Factors(parts[0].a, parts[0].b, parts[0].scale)
    return stack(parts)


def stack(parts: Sequence[Part]) -> Factors:
    """Rows of A stacked, columns of B scaled and stacked; scale 1."""
    a = np.concatenate([part.a for part in parts], axis=0)
    b = np.concatenate([part.b * np.float32(part.weight * part.scale) for part in parts], axis=1)
    return Factors(a, b)


def stack_stored(factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """`stack` of factors that are stored alike, as they are stored: A's bits stay, B is scaled in float32.

    Args:
        factors: each part's A and B.
        weights: weight * scale of each.
    """
    a = torch.cat([a for a, _ in factors])
    b = torch.empty(len(factors[0][1]), len(a), dtype=a.dtype)
    ranks = [len(a) for a, _ in factors]
    for target, (_, part), weight in zip(torch.split(b, ranks, dim=1), factors, weights, strict=True):
        # Blocks of rows stay in the cache.
        for rows, stored in zip(torch.split(target, 512), torch.split(part, 512), strict=True):
            rows.copy_(stored.float() * weight)
    return a, b


def factor(parts: Sequence[Part]) -> Factors:
    """A' = sum lambda A, B' = sum lambda B, the scale kept: the arithmetic of the authors' release."""
    a, b = np.zeros_like(parts[0].a), np.zeros_like(parts[0].b)
    for part in parts:
        a += np.float32(part.weight) * part.a
        b += np.float32(part.weight) * part.b
    return Factors(a, b, parts[0].scale)


def factor_norm(parts: Sequence[Part]) -> Factors:
    """`factor`, its B rescaled so that the Frobenius norm of dW is the exact sum's.

    Raises:
        UsageError: the averaged factors cancel where the exact sum does not.
    """
    if len(parts) == 1 and parts[0].weight == 1.0:
        return factor(parts)
    exact, mixed = delta(parts), factor(parts)
    exact_norm, mixed_norm = product_norm(exact), product_norm(mixed)
    if mixed_norm == 0.0 and exact_norm > 0.0:
        names = ", ".join(part.adapter for part in parts)
        raise UsageError(
            f"The averaged factors of {names} cancel in {parts[0].module}, so no rescaling helps.",
            "Compose with --method delta.",
        )
    return Factors(mixed.a, mixed.b * np.float32(exact_norm / mixed_norm if mixed_norm else 1.0), mixed.scale)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("delta", "dW = sum lambda s B A, exact", "sum", True, delta),
        Method("factor", "A' = sum lambda A, B' = sum lambda B", "equal", False, factor),
        Method("factor-norm", "factor, with the exact sum's norm", "equal", False, factor_norm),
        Method("routed", "delta; a modality's own tokens keep its adapter", "sum", True, delta, routed=True),
        Method("ties", "trim, elect signs, mean of what agrees", "dense", False, ties, {"density": 0.2}),
        Method("dare", "drop at random, rescale, sum", "dense", False, dare, {"density": 0.5, "seed": 0}),
    )
}

METHOD = plugins.Kind("method", "earec.methods", plugins.instance_check(Method), reserved=lambda: METHODS)
"""The kind of plugin that brings a method of composition."""


def method_names() -> list[str]:
    """Every method's name, those of plugins last; nothing is imported."""
    return plugins.names_in(METHODS, METHOD)


def get_method(name: str) -> Method:
    """The method of that name; a plugin is imported only for its own.

    Raises:
        UsageError: there is none.
        PluginError: a plugin brings it and is not usable.
    """
    return plugins.choose(METHODS, METHOD, name, "composition method")


def combine(method: Method, parts: Sequence[Part], options: Mapping[str, float]) -> Factors | Dense:
    """What a method makes of one module, its shapes checked.

    Args:
        method: any.
        parts: of one module, those of weight 0 left out.
        options: as `Method.options`.

    Raises:
        PluginError: a plugin's method raised, or a result is not of this module's shape.
    """
    fix = f"Mend the method {method.name!r}, or compose with --method delta."
    try:
        result = method.combine(parts, **options)
    except Exception as error:
        if isinstance(error, EarecError) or method.name in METHODS or os.environ.get("EAREC_STRICT_PLUGINS"):
            raise
        cause = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
        raise PluginError(
            f"The method {method.name!r} failed in {parts[0].module} ({cause}).", fix
        ) from error
    ranks = [len(part.a) for part in parts]
    rank = sum(ranks) if method.rank == "sum" else ranks[0]
    (d_out, _), (_, d_in) = parts[0].b.shape, parts[0].a.shape
    expected = [(d_out, d_in)] if method.rank == "dense" else [(rank, d_in), (d_out, rank)]
    shapes = [np.shape(m) for m in ((result.a, result.b) if isinstance(result, Factors) else (result,))]
    if shapes != expected:
        raise PluginError(
            f"The method {method.name!r} gave shapes {shapes} for {parts[0].module}, not {expected}.", fix
        )
    return result


def truncate(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of a lower rank: singular values beyond `rank` are dropped.

    QR of both factors leaves a core as small as the rank, so dW [d_out, d_in] itself is never formed. The
    singular values are shared equally between the factors, which suits half precision.

    Returns:
        The factors with scale 1, and the Frobenius norm of what was dropped (Eckart-Young).
    """
    q_b, r_b = np.linalg.qr(factors.b.astype(np.float64))
    q_a, r_a = np.linalg.qr(factors.a.T.astype(np.float64))
    u, s, vt = np.linalg.svd(factors.scale * (r_b @ r_a.T), full_matrices=False)
    root = np.sqrt(s[:rank])
    b = (q_b @ (u[:, :rank] * root)).astype(np.float32)
    a = ((vt[:rank].T * root).T @ q_a.T).astype(np.float32)
    return Factors(a, b), float(np.linalg.norm(s[rank:]))
