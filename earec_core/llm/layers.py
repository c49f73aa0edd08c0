"""Which layers of an LLM LoRA adapts, and which matrices it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

_READ_PAST: Mapping[str, tuple[str, ...]] = {
    "Mixer": ("x_proj", "dt_proj", "out_proj"),
    "MambaLayer": ("out_proj",),
    "TopkRouter": ("classifier",),
}
"""Linear layers whose weight is read past them, so that an adapter on the layer would change nothing: of Mamba's
kernels and LongCat's router, by the end of the name of the class that holds them."""


def linear_weight(module: nn.Module | None) -> Float[Tensor, "d_out d_in"] | None:
    """A linear layer's weight, as a view where it lies transposed (GPT-2's `Conv1D`); None of any other module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.weight
    return module.weight.T if isinstance(module, Conv1D) else None


def adapted(model: Any) -> list[str]:
    """Names of all linear layers of an LLM's blocks that PEFT can adapt.

    Args:
        model: a transformers causal LM.
    """
    head = model.get_output_embeddings()
    layers = {}
    for owner, module in model.named_modules():
        for child, layer in module.named_children():
            if linear_weight(layer) is not None and layer is not head and not _is_read_past(module, child):
                layers[f"{owner}.{child}".lstrip(".")] = layer
    # PEFT's configuration says for all layers together whether their weights lie transposed.
    plain = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return _kept_by_peft(model, plain or list(layers))


def left_out(model: Any, names: set[str]) -> list[str]:
    """The matrices of an LLM's blocks outside of some layers: `kind of module (names)`, sorted.

    Args:
        model: a transformers causal LM.
        names: of the layers.
    """
    head = model.get_output_embeddings()
    kinds: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if name in names or module is head or isinstance(module, nn.Embedding):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                label = name.rpartition(".")[2] if own == "weight" else own
                kinds.setdefault(type(module).__name__, set()).add(label)
    return [f"{kind} ({', '.join(sorted(labels))})" for kind, labels in sorted(kinds.items())]


def _is_read_past(owner: nn.Module, child: str) -> bool:
    kind = type(owner).__name__
    return any(kind.endswith(end) and child in children for end, children in _READ_PAST.items())


def _kept_by_peft(model: nn.Module, names: list[str]) -> list[str]:
    """Those of some layers that PEFT adapts as they are.

    In models whose experts transformers has fused, PEFT takes a `gate_proj` (or `up_proj`, `down_proj`) for the
    experts' of before, a shared expert's too.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a PEFT from before the fusing
        return names
    config = LoraConfig(target_modules=names)
    with suppress(ValueError):  # what it cannot convert it refuses again when the adapter is put on
        convert_peft_config_for_transformers(config, model, None)
    kept = set(config.target_modules or ())
    return [name for name in names if name in kept]
