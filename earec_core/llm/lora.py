"""LoRA on the LLM, in three forms: fresh and trained, stored and merged into the weights, stored and side by side.

Each is an adapter for `Backbone.adapted` and leaves the LLM as it was:

    with backbone.adapted(TrainableLora(settings)) as lora: ...
    with backbone.adapted(MergedLora(folder)): ...
    with backbone.adapted(Mixture(folders)) as mixture: ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.config import LoraSettings
from earec_core.errors import IntegrityError, UsageError, one_line
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.llm.layers import linear_weight
from earec_core.llm.packed import PackedLinear
from earec_core.llm.peft_adapter import WEIGHTS, LoraAdapter, layer_of
from earec_core.llm.products import Casts, LoraLinear

_NAME = "default"
_PLAIN = (nn.Linear.forward, PackedLinear.forward)


class TrainableLora(Adapter):
    """A fresh adapter on the linear layers of the LLM's blocks; its A matrices follow from the seed alone.

    They are those of `Backbone.linear_modules`; `Backbone.left_out` names the other matrices, such as experts that
    lie in one tensor.

    Its factors are float32 whatever the LLM is, and it is in evaluation mode at first.

    Attributes:
        settings: rank, alpha, dropout, seed.
        parameters: while it is on, the factors by their names in a PEFT checkpoint.
    """

    def __init__(self, settings: LoraSettings) -> None:
        self.settings = settings
        self.parameters: dict[str, nn.Parameter] = {}
        self._layers: dict[str, nn.Module] = {}
        self._marks: set[str] = set()
        self._dropouts: list[nn.Module] = []

    @property
    def random(self) -> bool:
        return any(isinstance(module, nn.Dropout) and module.training for module in self._dropouts)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        for dropout in self._dropouts:
            dropout.train(mode)

    def put_on(self, backbone: Backbone) -> None:
        from peft import inject_adapter_in_model

        self._model, self._base = backbone.model, backbone.info.id
        names = backbone.linear_modules()
        if not names:
            raise UsageError(
                f"The backbone {self._base} has no linear layer that LoRA can adapt.",
                "Choose another backbone.",
            )
        self._layers = {name: backbone.model.get_submodule(name) for name in names}
        self._transposed = not all(isinstance(layer, nn.Linear) for layer in self._layers.values())
        config = self._config(names)
        before = set(vars(self._model))
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                inject_adapter_in_model(config, self._model, adapter_name=_NAME)
        except ValueError as error:
            raise UsageError(
                f"PEFT cannot adapt the backbone {self._base}: {one_line(error)}.", "Choose another backbone."
            ) from error
        finally:
            self._marks = set(vars(self._model)) - before
        self._model.eval().requires_grad_(False)
        for name, parameter in self._model.named_parameters():
            if f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
                self.parameters[f"base_model.model.{name.replace(f'.{_NAME}.', '.')}"] = parameter
        by_layer = [getattr(module, "lora_dropout", {}) for module in self._model.modules()]
        self._dropouts = [dropout for dropouts in by_layer for dropout in dropouts.values()]
        if not self.settings.dropout:
            self._in_one_step()

    def _in_one_step(self) -> None:
        """Let the plain layers compute as `LoraLinear`; others, and any with dropout, as PEFT has them."""
        casts = Casts()
        for name, layer in self._layers.items():
            if isinstance(layer, nn.Linear) and type(layer).forward in _PLAIN:
                adapted: Any = self._model.get_submodule(name)
                a, b = adapted.lora_A[_NAME].weight, adapted.lora_B[_NAME].weight
                adapted.forward = LoraLinear(layer, a, b, adapted.scaling[_NAME], casts)

    def take_off(self) -> None:
        for name, layer in self._layers.items():
            _replace(self._model, name, layer)
        for mark in self._marks:
            delattr(self._model, mark)
        self.parameters, self._layers, self._marks, self._dropouts = {}, {}, set(), []

    def save(self, folder: Path) -> None:
        """Write a plain PEFT adapter directory that `PeftModel.from_pretrained` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        targets = sorted({name.rpartition(".")[2] for name in self._layers})
        ends = {name for name, _ in self._model.named_modules() if name.rpartition(".")[2] in targets}
        if ends != set(self._layers):
            targets = sorted(self._layers)  # a short name would match what is not adapted
        config = self._config(targets, base_model_name_or_path=self._base, inference_mode=True)
        # PEFT holds the target modules in a set, whose order changes from run to run; identical
        # adapters must be identical files.
        config.target_modules = targets
        config.save_pretrained(str(folder))
        tensors = {name: p.detach().cpu().contiguous() for name, p in sorted(self.parameters.items())}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, file: Path) -> None:
        """Copy stored factors into the parameters.

        Raises:
            UsageError: they are of other modules or another rank.
            IntegrityError: the file cannot be read.
        """
        try:
            factors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(
                f"The adapter {file} cannot be read ({one_line(error)}).", "Align that adapter again."
            ) from error
        if set(factors) != set(self.parameters):
            raise UsageError(
                f"The adapter {file} adapts other modules than this run's.",
                "Continue with the same backbone.",
            )
        for name, parameter in self.parameters.items():
            stored, own = tuple(factors[name].shape), tuple(parameter.shape)
            if stored != own:
                raise UsageError(
                    f"The adapter's {name} is {stored}, this run's {own}.",
                    "Set lora.r to the adapter's rank.",
                )
            parameter.data.copy_(factors[name])

    def _config(self, modules: list[str], **fields: Any) -> Any:
        from peft import LoraConfig

        rank, alpha, dropout = self.settings.r, self.settings.alpha, self.settings.dropout
        fields |= {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": modules}
        fields["fan_in_fan_out"] = self._transposed
        return LoraConfig(**fields, bias="none", task_type="CAUSAL_LM")


class MergedLora(Adapter):
    """A stored PEFT LoRA adapter added to the weights, dW = s B A: as fast to run as the LLM alone.

    Adding and subtracting would not give the weights back, so those that change are kept: as long as it is on,
    the LLM's linear layers take their memory twice, the second time on the CPU where the LLM is on a GPU.

    Raises:
        IntegrityError: from `Backbone.adapted`: it is damaged, or was made for a model of other shapes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def put_on(self, backbone: Backbone) -> None:
        adapter = _open(self._folder)
        for module in _fitting(backbone, {"": adapter}):
            weight = _weight(backbone.model.get_submodule(module))
            a, b, scale = adapter.factors(module)
            delta = (torch.from_numpy(b) @ torch.from_numpy(a)) * scale
            self._kept.append((weight, weight.detach().to("cpu", copy=True)))
            weight.copy_(weight.float() + delta.to(weight.device))

    @torch.no_grad()
    def take_off(self) -> None:
        while self._kept:
            weight, original = self._kept.pop()
            weight.copy_(original)


class Mixture(Adapter):
    """Adapters side by side on one LLM: y = W x + sum_i c_i s_i B_i A_i x, the c_i set at any time.

    Setting them costs nothing beside a forward pass, and they may carry a gradient, which several backward passes
    may reach. With `own`, positions of a
    modality's slot go through its own adapter alone (the route of ModelCompose, Chen et al., ACL 2024).

    Attributes:
        names: the adapters, in the order given.
        layers: how many numbered layers of the LLM they change.

    Args:
        adapters: PEFT LoRA directory by name.

    Raises:
        IntegrityError: an adapter is damaged; from `Backbone.adapted`: it was made for a model of other shapes.
    """

    def __init__(self, adapters: Mapping[str, Path]) -> None:
        self.names = tuple(adapters)
        self._opened = {name: _open(folder) for name, folder in adapters.items()}
        modules = {module for adapter in self._opened.values() for module in adapter.shapes}
        self.layers = 1 + max((layer_of(module) or 0 for module in modules), default=0)
        self._weights: Float[Tensor, "l n"] = torch.zeros(self.layers, len(self.names))
        self._own: dict[str, int] = {}
        self._mixed: dict[str, _Mixed] = {}
        self._route = _Route()

    def set(self, weights: Mapping[str, float] | Tensor, *, own: Mapping[str, str] | None = None) -> None:
        """Set the coefficients.

        Args:
            weights: by adapter (absent: 0), or a tensor [n] or, layer by layer, [l, n] in the order of `names`.
            own: for a modality the adapter that alone reads its slot's positions; default: as all positions.
        """
        if not isinstance(weights, Tensor):
            weights = torch.tensor([float(weights.get(name, 0.0)) for name in self.names])
        self._weights = weights.to(self._weights.device).expand(self.layers, len(self.names))
        self._own = {modality: self.names.index(name) for modality, name in (own or {}).items()}

    def put_on(self, backbone: Backbone) -> None:
        self._model = backbone.model
        self._weights = self._weights.to(backbone.device)
        for module, base in _fitting(backbone, self._opened).items():
            mixed = _Mixed(self, module, base, self._opened)
            _replace(self._model, module, mixed)
            self._mixed[module] = mixed

    def take_off(self) -> None:
        for module, mixed in self._mixed.items():
            _replace(self._model, module, mixed.base)
        self._mixed = {}

    @contextmanager
    def routed(self, owners: Int[Tensor, "b s"], modalities: tuple[str, ...]) -> Iterator[None]:
        self._route.left = dict.fromkeys(self._mixed, (owners, modalities)) if self._own else {}
        try:
            yield
        finally:
            self._route.left = {}

    def coefficients(self, module: str) -> Float[Tensor, "*_ n"]:
        """A module's coefficients in its next pass: [n], or [b, s, n] where positions have a route of their own."""
        weights = self._weights[layer_of(module) or 0]
        if module not in self._route.left:
            return weights
        owners, modalities = self._route.left.pop(module)
        unit = torch.eye(len(self.names), device=owners.device)
        by_modality = [unit[self._own[m]] if m in self._own else weights for m in modalities]
        return torch.stack([*by_modality, weights])[owners]


class _Route(local):
    """Of a thread's next pass, by modules that it has not reached: whose each position is."""

    def __init__(self) -> None:
        self.left: dict[str, tuple[Tensor, tuple[str, ...]]] = {}


class _Mixed(nn.Module):
    """One linear layer with its adapters: A [r, d_in] of all stacked, B [d_out, r] scaled and side by side."""

    def __init__(
        self, mixture: Mixture, module: str, base: nn.Module, adapters: Mapping[str, LoraAdapter]
    ) -> None:
        super().__init__()
        self.base, self.name = base, module
        self._mixture = (mixture,)  # in a tuple, so that it is no submodule
        factors = [
            (n, adapter.factors(module)) for n, adapter in adapters.items() if module in adapter.shapes
        ]
        device = _weight(base).device
        self._a = torch.cat([torch.from_numpy(a) for _, (a, _, _) in factors]).to(device)
        self._b = torch.cat([torch.from_numpy(b) * scale for _, (_, b, scale) in factors], dim=1).to(device)
        owners = [mixture.names.index(name) for name, (a, _, _) in factors for _ in a]
        self._owners = torch.tensor(owners, device=device)

    @property
    def weight(self) -> Tensor:
        """The layer's own, whose type and device some architectures look at."""
        return cast("Tensor", self.base.weight)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        coefficients = self._mixture[0].coefficients(self.name)
        if coefficients.ndim > 1 and coefficients.shape[:-1] != x.shape[:-1]:
            raise UsageError(
                f"The layer {self.name} does not read a prompt position by position, so no position can have "
                "a route of its own.",
                "Compose with another method than routed.",
            )
        y: Tensor = self.base(x)
        change = F.linear(F.linear(x.to(self._a.dtype), self._a) * coefficients[..., self._owners], self._b)
        return y + change.to(y.dtype)


def _open(folder: Path) -> LoraAdapter:
    try:
        return LoraAdapter.open(folder)
    except (UsageError, IntegrityError) as error:
        raise IntegrityError(
            f"The adapter {folder} cannot be read: {error.problem}", "Run `earec registry verify`."
        ) from error


def _fitting(backbone: Backbone, adapters: Mapping[str, LoraAdapter]) -> dict[str, nn.Module]:
    """The backbone's layers that the adapters change, by name, shapes checked."""
    modules = dict(backbone.model.named_modules())
    layers = {}
    for adapter in adapters.values():
        for name, (d_out, _, d_in) in adapter.shapes.items():
            layer = modules.get(name)
            weight = linear_weight(layer)
            if layer is None or weight is None or weight.shape != (d_out, d_in):
                raise IntegrityError(
                    f"The adapter's module {name} ({d_out}x{d_in}) does not fit the backbone "
                    f"{backbone.info.id}.",
                    "Use the backbone that its manifest names (`earec registry show`).",
                )
            layers[name] = layer
    return layers


def _weight(layer: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight of one of `_fitting`'s layers."""
    return cast("Tensor", linear_weight(layer))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    setattr(model.get_submodule(owner), child, module)
