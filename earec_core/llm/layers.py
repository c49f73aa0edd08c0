"""Which layers of an LLM LoRA adapts, and which matrices it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from earec_core.llm.packed import PackedLinear

_READ_PAST: Mapping[str, tuple[str, ...]] = {
    "Mixer": ("x_proj", "dt_proj", "out_proj"),
    "MambaLayer": ("out_proj",),
    "TopkRouter": ("classifier",),
}
"""Linear layers whose weight is read past them, so that an adapter on the layer would change nothing: of Mamba's
kernels and LongCat's router, by the end of the name of the class that holds them."""


def linear_weight(module: nn.Module | None) -> Float[Tensor, "d_out d_in"] | None:
    """A linear layer's weight, as a view where it lies transposed (GPT-2's `Conv1D`).

    None of any other module, and of a packed one, which has none that could be changed.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear) and not isinstance(module, PackedLinear):
        return module.weight
    return module.weight.T if isinstance(module, Conv1D) else None


def weights(layer: nn.Module) -> int:
    """How many weights a linear layer has, packed or not."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    weight = linear_weight(layer)
    return 0 if weight is None else weight.numel()


def adapted(model: Any) -> list[str]:
    """Names of all linear layers of an LLM's blocks that PEFT can adapt.

    Left out beside the output layer: those that do more than multiply (routers that also choose), whose weight is
    read past them, or whose weight several layers share, as a difference merged for one would change the others.

    Args:
        model: a transformers causal LM.
    """
    head = model.get_output_embeddings()
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = {}
    for owner, module in model.named_modules():
        for child, layer in module.named_children():
            if layer is head or not _multiplies_alone(layer) or _is_read_past(module, child):
                continue
            if isinstance(layer, PackedLinear) or uses[id(layer.weight)] == 1:
                layers[f"{owner}.{child}".lstrip(".")] = layer
    # PEFT's configuration says for all layers together whether their weights lie transposed.
    plain = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return _kept_by_peft(model, plain or list(layers))


@torch.no_grad()
def keep_in(model: Any, dtype: torch.dtype) -> None:
    """Keep the weights of LoRA's layers and of the output layer in the type that they are multiplied in.

    Autocast would cast them again in every pass, and for every token that is written. All else (embeddings, norms)
    stays as it is; an output layer that shares the embeddings' weight gets a copy.

    Args:
        model: a transformers causal LM.
        dtype: float32: nothing changes.
    """
    if dtype == torch.float32:
        return
    for name in adapted(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, PackedLinear):
            layer.weight.data = layer.weight.data.to(dtype)
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.weight = nn.Parameter(head.weight.detach().to(dtype), requires_grad=False)


@torch.no_grad()
def pack(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Put LoRA's plain layers into 4 bits, one after the other on the device.

    Layers that do more than `nn.Linear`, or whose rows are no whole blocks, stay.

    Args:
        model: a transformers causal LM on the CPU.
        dtype: what is computed in.
    """
    for name in adapted(model):
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear and PackedLinear.fits(layer):
            model.set_submodule(name, PackedLinear(layer.to(device), dtype))


def blocks(model: Any) -> list[nn.Module]:
    """The blocks of an LLM that transformers can compute again on the way back; some architectures have none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within the block a pass keeps each block's input alone (Chen et al., arXiv 1604.06174).

    It asks transformers' blocks to do what `gradient_checkpointing_enable` asks of them; that the rest of the LLM
    is not in training stays so.
    """
    again = partial(checkpoint, use_reentrant=False)
    changed = blocks(model)
    try:
        for module in changed:
            vars(module).update(
                gradient_checkpointing=True, training=True, _gradient_checkpointing_func=again
            )
        yield
    finally:
        for module in changed:
            vars(module).update(gradient_checkpointing=False, training=False)


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


@torch.no_grad()
def _multiplies_alone(layer: nn.Module) -> bool:
    """Whether a linear layer gives W x + b and no more; one with a `forward` of its own is tried."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, PackedLinear):
        return True
    weight = linear_weight(layer)
    if weight is None or type(layer).forward in (nn.Linear.forward, Conv1D.forward):
        return weight is not None
    x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device).view(2, -1).to(weight.dtype)
    try:
        y = layer(x)
    except Exception:  # noqa: BLE001 - one that wants other inputs does more
        return False
    bias: Any = layer.bias
    expected = nn.functional.linear(x, weight, bias)
    return (
        isinstance(y, Tensor)
        and y.shape == expected.shape
        and torch.allclose(y, expected, atol=1e-2, rtol=1e-2)
    )


def _is_read_past(owner: nn.Module, child: str) -> bool:
    kind = type(owner).__name__
    return any(kind.endswith(end) and child in children for end, children in _READ_PAST.items())


def _kept_by_peft(model: nn.Module, names: list[str]) -> list[str]:
    """Those of some layers that PEFT adapts as they are, and finds again under their names in a checkpoint.

    In models whose experts transformers has fused, PEFT takes a `gate_proj` (or `up_proj`, `down_proj`) for the
    experts' of before, a shared expert's too; and it renames factors as transformers renames the weights of
    checkpoints of before, so that those of Laguna's shared experts go nowhere.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers,
            convert_peft_config_for_transformers,
        )
    except ImportError:  # a PEFT from before the fusing
        return names
    config = LoraConfig(target_modules=names)
    with suppress(ValueError):  # what it cannot convert it refuses again when the adapter is put on
        convert_peft_config_for_transformers(config, model, None)
    kept = set(config.target_modules or ())
    factors = {f"base_model.model.{name}.lora_A.weight": torch.empty(1, 1) for name in names if name in kept}
    found = convert_peft_adapter_state_dict_for_transformers(model, config, dict(factors))
    return [
        name for name in names if f"base_model.model.{name}.lora_A.weight" in factors.keys() & found.keys()
    ]
