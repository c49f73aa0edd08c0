"""Stored adapters at work on a backbone: merged into its weights, or side by side and weighted as they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.errors import IntegrityError, UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.peft_adapter import LoraAdapter, layer_of

MERGED = "(merged)"


@torch.no_grad()
def merge(backbone: Backbone, folder: Path) -> None:
    """Add a stored PEFT LoRA adapter to the weights: dW = s B A; faster to run than the adapter itself.

    Raises:
        IntegrityError: it was made for a model of other shapes, or is damaged.
    """
    adapter = _open(folder)
    for module, layer in _fitting(backbone, {"": adapter}).items():
        a, b, scale = adapter.factors(module)
        delta = (torch.from_numpy(b) @ torch.from_numpy(a)) * scale
        layer.weight.add_(delta.to(layer.weight.device, layer.weight.dtype))


class Mixture:
    """Adapters side by side on one backbone: y = W x + sum_i c_i s_i B_i A_i x, the c_i set at any time.

    Setting them costs nothing beside a forward pass, and they may carry a gradient. With `own`, positions of a
    modality's slot go through its own adapter alone (the route of ModelCompose, Chen et al., ACL 2024).

    Attributes:
        names: the adapters, in the order given.
        layers: how many numbered layers of the backbone they change.

    Args:
        adapters: PEFT LoRA directory by name.

    Raises:
        IntegrityError: an adapter is damaged or was made for a model of other shapes.
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[str, Path]) -> None:
        self.names = tuple(adapters)
        self._backbone = backbone
        opened = {name: _open(folder) for name, folder in adapters.items()}
        fitting = _fitting(backbone, opened)
        self.layers = 1 + max((layer_of(module) or 0 for module in fitting), default=0)
        self._weights: Float[Tensor, "l n"] = torch.zeros(self.layers, len(self.names))
        self._own: dict[str, int] = {}
        for module, base in fitting.items():
            _replace(backbone, module, _Mixed(self, module, base, opened))

    def set(self, weights: Mapping[str, float] | Tensor, *, own: Mapping[str, str] | None = None) -> None:
        """Set the coefficients.

        Args:
            weights: by adapter (absent: 0), or a tensor [n] or, layer by layer, [l, n] in the order of `names`.
            own: for a modality the adapter that alone reads its slot's positions; default: as all positions.
        """
        if not isinstance(weights, Tensor):
            weights = torch.tensor([float(weights.get(name, 0.0)) for name in self.names])
        self._weights = weights.to(self._backbone.device).expand(self.layers, len(self.names))
        self._own = {modality: self.names.index(name) for modality, name in (own or {}).items()}

    def coefficients(self, layer: int, shape: tuple[int, ...]) -> Float[Tensor, "*b n"]:
        """The coefficients of one layer: [n], or [b, s, n] where positions have routes of their own."""
        row = self._weights[layer]
        reading = self._backbone.reading
        # Tokens generated after the prompt are text.
        if not self._own or reading is None or tuple(reading.owners.shape) != shape:
            return row
        unit = torch.eye(len(self.names), device=row.device)
        table = [unit[self._own[m]] if m in self._own else row for m in reading.modalities]
        owners: Int[Tensor, "b s"] = reading.owners
        return torch.stack([*table, row])[owners]

    def remove(self) -> None:
        """Take the adapters off; the backbone is as it was."""
        for name, module in list(self._backbone.model.named_modules()):
            if isinstance(module, _Mixed):
                _replace(self._backbone, name, module.base)


class _Mixed(nn.Module):
    """One linear layer with its adapters; A of all adapters stacked, B side by side with its scale."""

    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_out r"]
    owner: Int[Tensor, " r"]

    def __init__(
        self, mixture: Mixture, module: str, base: nn.Linear, adapters: Mapping[str, LoraAdapter]
    ) -> None:
        super().__init__()
        self.base, self._layer = base, layer_of(module) or 0
        self._mixture = (mixture,)  # in a tuple, so that it is no submodule
        read = {n: adapter.factors(module) for n, adapter in adapters.items() if module in adapter.shapes}
        a = torch.cat([torch.from_numpy(a) for a, _, _ in read.values()])
        b = torch.cat([torch.from_numpy(b) * scale for _, b, scale in read.values()], dim=1)
        owner = [mixture.names.index(name) for name, (a, _, _) in read.items() for _ in range(len(a))]
        device = base.weight.device
        self.register_buffer("a", a.to(device), persistent=False)
        self.register_buffer("b", b.to(device), persistent=False)
        self.register_buffer("owner", torch.tensor(owner, device=device), persistent=False)

    def forward(self, x: Float[Tensor, "b s d_in"]) -> Float[Tensor, "b s d_out"]:
        c = self._mixture[0].coefficients(self._layer, tuple(x.shape[:2]))[..., self.owner]
        y: Tensor = self.base(x)
        change = F.linear(F.linear(x.to(self.a.dtype), self.a) * c, self.b)
        return y + change.to(y.dtype)


def _open(folder: Path) -> LoraAdapter:
    try:
        return LoraAdapter.open(folder)
    except (UsageError, IntegrityError) as error:
        raise IntegrityError(
            f"The adapter {folder} cannot be read: {error.what}", "Run `earec registry verify`."
        ) from error


def _fitting(backbone: Backbone, adapters: Mapping[str, LoraAdapter]) -> dict[str, nn.Linear]:
    """The backbone's layers that the adapters change, by name, shapes checked."""
    modules = dict(backbone.model.named_modules())
    found = {}
    for adapter in adapters.values():
        for name, (d_out, _, d_in) in adapter.shapes.items():
            layer = modules.get(name)
            if not isinstance(layer, nn.Linear) or layer.weight.shape != (d_out, d_in):
                raise IntegrityError(
                    f"The adapter's module {name} ({d_out}x{d_in}) does not fit the backbone "
                    f"{backbone.info.id}.",
                    "Use the backbone that its manifest names (`earec registry show`).",
                )
            found[name] = layer
    return found


def _replace(backbone: Backbone, name: str, module: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    setattr(backbone.model.get_submodule(owner), child, module)
