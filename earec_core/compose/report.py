"""What a composition did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from earec_core.llm.tensors import Dtype


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One composed module.

    Attributes:
        name: the module's name in the base model.
        rank: its rank in the composite.
        norm: ||dW||_F of the exact sum.
        relative_error: ||composed - exact||_F / ||exact||_F.
        truncation_error: the same against the method's own result in place of the exact sum: what its storage
            as factors of this rank and type costs.
    """

    name: str
    rank: int
    norm: float
    relative_error: float
    truncation_error: float


@dataclass(frozen=True, slots=True)
class ComposeReport:
    """What a composition did; `dataclasses.asdict` makes it JSON.

    Attributes:
        method: the method's name.
        options: the options that the method takes, as used.
        weights: the weights used (after `normalize`), by adapter; those at 0 took no part.
        layer_weights: the weights used in those layers that have their own.
        rank: the composite's `r`, the largest of its modules'.
        dtype: how its factors are stored.
        relative_error: ||composed - exact||_F / ||exact||_F over all modules together, truncation and
            rounding to a half-precision `dtype` included; 0 means exact to float32 rounding. None, as are the
            next two, where nothing was measured; then there are no norms, cosines and modules.
        truncation_error: the same against the method's own result; differs where the method is not exact.
        norm: ||dW||_F of the exact sum over all modules.
        norms: ||dW_i||_F of each adapter that took part, its scale included, its weight not.
        cosines: cosine between two adapters' dW over all modules, by "first,second"; 0 where one is zero.
        modules: every module, in alphabetical order.
        base_models: the base models that the adapters name, sorted; more than one deserves a look.
        bytes: size of the composite's two files.
        path: the directory written.
    """

    method: str
    options: dict[str, float]
    weights: dict[str, float]
    layer_weights: dict[int, dict[str, float]]
    rank: int
    dtype: Dtype
    relative_error: float | None
    truncation_error: float | None
    norm: float | None
    norms: dict[str, float]
    cosines: dict[str, float]
    modules: tuple[ModuleReport, ...]
    base_models: tuple[str, ...]
    bytes: int
    path: str
