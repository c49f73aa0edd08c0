"""Adapters side by side on a backbone, against PEFT's loader, merged weights and a layer-by-layer loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from earec_core.compose import Recipe, compose
from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.lora import MergedLora, Mixture, TrainableLora
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot

WEIGHTS = {"a": 0.2, "b": 0.8}
OWN = {"a": "a", "b": "b"}


def load(tiny_llm: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))


@pytest.fixture
def adapters(tiny_llm: Path, tmp_path: Path) -> dict[str, Path]:
    found = {}
    for seed, (name, rank) in enumerate({"a": 4, "b": 2}.items()):
        backbone = load(tiny_llm)
        with backbone.adapted(TrainableLora(LoraSettings(r=rank, alpha=8))) as lora:
            for i, parameter in enumerate(lora.parameters.values()):
                parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(100 * seed + i))
            lora.save(tmp_path / name)
        found[name] = tmp_path / name
    return found


def batch(backbone: Backbone, *, shared: bool = True) -> Spliced:
    generator = torch.Generator().manual_seed(3)
    slots = {
        Slot(m, i): torch.randn(2 + i, backbone.d_llm, generator=generator) for i in range(3) for m in "ab"
    }
    prompts = [
        Prompt(
            i, ((0, 10, 20) if shared else (0, 10, 20 + i), Slot("a", i), (40,), Slot("b", i), (50, 51 + i))
        )
        for i in range(3)
    ]
    return backbone.splice(prompts, slots)


def valid(backbone: Backbone, spliced: Spliced, *, share_prefix: bool = True) -> torch.Tensor:
    hidden = backbone.hidden(spliced, share_prefix=share_prefix)
    return torch.cat([hidden[i, :n] for i, n in enumerate(spliced.lengths.tolist())])


def changes(tiny_llm: Path, adapters: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    """Each adapter's dW by module, from the weights of a backbone that has it merged."""
    backbone, found = load(tiny_llm), {}
    names = backbone.linear_modules()
    for key, folder in adapters.items():
        before = {name: backbone.model.get_submodule(name).weight.detach().clone() for name in names}
        with backbone.adapted(MergedLora(folder)):
            found[key] = {n: backbone.model.get_submodule(n).weight.detach() - w for n, w in before.items()}
    return found


def test_weighted_adapters_equal_the_exact_composite(
    tiny_llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    compose(adapters, Recipe(WEIGHTS), tmp_path / "merged")
    backbone = load(tiny_llm)
    with backbone.adapted(MergedLora(tmp_path / "merged")):
        merged = valid(backbone, batch(backbone))
    with backbone.adapted(Mixture(adapters)) as mixture:
        mixture.set(WEIGHTS)
        torch.testing.assert_close(valid(backbone, batch(backbone)), merged, atol=1e-4, rtol=1e-4)


def test_layer_weights_equal_those_that_compose_takes(
    tiny_llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    layers = {0: {"a": 1.0, "b": 0.0}, 1: {"a": 0.3, "b": 0.7}}
    compose(adapters, Recipe(WEIGHTS, layer_weights=layers), tmp_path / "merged")
    backbone = load(tiny_llm)
    with backbone.adapted(MergedLora(tmp_path / "merged")):
        merged = valid(backbone, batch(backbone))
    with backbone.adapted(Mixture(adapters)) as mixture:
        assert mixture.layers == 2
        mixture.set(torch.tensor([[1.0, 0.0], [0.3, 0.7]]))
        torch.testing.assert_close(valid(backbone, batch(backbone)), merged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_each_position_takes_its_own_route(tiny_llm: Path, adapters: dict[str, Path], shared: bool) -> None:
    """Against weights that hold one adapter each, swapped position by position in the first layer's queries."""
    backbone = load(tiny_llm)
    name = "model.layers.0.self_attn.q_proj"
    base = backbone.model.get_submodule(name)
    seen: dict[str, torch.Tensor] = {}
    with backbone.adapted(Mixture(adapters)) as mixture:
        mixture.set(WEIGHTS, own=OWN)
        layer = backbone.model.get_submodule(name)
        layer.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
        spliced = batch(backbone, shared=shared)
        backbone.hidden(spliced)
    change = changes(tiny_llm, adapters)
    assert {"a", "b"} == set(spliced.modalities)
    start = seen["x"].shape[1] - spliced.owners.shape[1]
    for i in range(3):
        for j in range(spliced.owners.shape[1]):
            route = {-1: WEIGHTS, 0: {"a": 1.0}, 1: {"b": 1.0}}[int(spliced.owners[i, j])]
            weight = base.weight + sum(w * change[key][name] for key, w in route.items())
            x, y = seen["x"][i, start + j], seen["y"][i, start + j]
            torch.testing.assert_close(y, x @ weight.T, atol=1e-4, rtol=1e-4)


def test_routes_do_not_depend_on_the_batch(tiny_llm: Path, adapters: dict[str, Path]) -> None:
    backbone = load(tiny_llm)
    with backbone.adapted(Mixture(adapters)) as mixture:
        mixture.set(WEIGHTS)
        unrouted = valid(backbone, batch(backbone))
        mixture.set(WEIGHTS, own=OWN)
        routed = valid(backbone, batch(backbone))
        assert not torch.allclose(routed, unrouted, atol=1e-2)
        whole = valid(backbone, batch(backbone), share_prefix=False)
        torch.testing.assert_close(whole, routed, atol=1e-4, rtol=1e-4)


class PerPosition(nn.Module):
    """A linear layer with a weight matrix of its own for every position of one row; beyond them, the last."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = len(self.weights) - 1
        rows = [x[0, j] @ self.weights[min(j, last)].T for j in range(x.shape[1])]
        return torch.stack(rows)[None]


@torch.no_grad()
def spoken(
    tiny_llm: Path, spliced: Spliced, row: int, routes: list[dict[str, float]], change: dict, tokens: int
) -> str:
    """Greedy decoding without a cache, batch or adapter: the whole row is run again for each token."""
    backbone = load(tiny_llm)
    for name in backbone.linear_modules():
        layer = backbone.model.get_submodule(name)
        owner, _, child = name.rpartition(".")
        weights = [layer.weight + sum(w * change[key][name] for key, w in r.items()) for r in routes]
        setattr(backbone.model.get_submodule(owner), child, PerPosition(weights))
    n = int(spliced.lengths[row])
    embeds = torch.cat([backbone.embed(spliced.prefix), spliced.body[row, :n]])[None]
    ids: list[int] = []
    for _ in range(tokens):
        token = int(backbone.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax())
        if token == backbone.tokenizer.eos_token_id:
            break
        ids.append(token)
        embeds = torch.cat([embeds, backbone.embed([token])[None]], dim=1)
    return backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("weights", [WEIGHTS, {"a": -1.5, "b": 1.0}])
def test_routed_generation_equals_a_weight_matrix_per_position(
    weights: dict[str, float], tiny_llm: Path, adapters: dict[str, Path]
) -> None:
    """What is generated after the prompt is text: its positions have the weights of all, not a slot's own."""
    backbone = load(tiny_llm)
    with backbone.adapted(Mixture(adapters)) as mixture:
        mixture.set(weights, own=OWN)
        spliced = batch(backbone)
        routed = backbone.generate(spliced, 6)
        mixture.set(weights)
        unrouted = backbone.generate(spliced, 6)
    change = changes(tiny_llm, adapters)
    for row in range(3):
        owners = [-1] * len(spliced.prefix) + spliced.owners[row, : spliced.lengths[row]].tolist()
        routes = [{-1: weights, 0: {"a": 1.0}, 1: {"b": 1.0}}[owner] for owner in [*owners, -1]]
        assert routed[row] == spoken(tiny_llm, spliced, row, routes, change, 6)
    assert routed != unrouted


def test_a_layer_that_does_not_read_by_position_refuses_a_route(
    tiny_llm: Path, adapters: dict[str, Path]
) -> None:
    backbone = load(tiny_llm)
    block = backbone.model.model.layers[0].mlp
    flat = type("Flat", (nn.Module,), {"forward": lambda self, x: self.mlp(x.flatten(0, 1)).view_as(x)})()
    flat.mlp = block
    with backbone.adapted(Mixture(adapters)) as mixture:
        backbone.model.model.layers[0].mlp = flat
        mixture.set(WEIGHTS)
        backbone.hidden(batch(backbone))
        mixture.set(WEIGHTS, own=OWN)
        with pytest.raises(UsageError, match=r"layers\.0\.mlp.* does not read a prompt position by position"):
            backbone.hidden(batch(backbone))
        backbone.model.model.layers[0].mlp = block
        # What was not reached has forgotten the route.
        mixture.set(WEIGHTS)
        backbone.hidden(batch(backbone))


def test_the_weights_have_the_gradient_of_finite_differences(
    tiny_llm: Path, adapters: dict[str, Path]
) -> None:
    backbone = load(tiny_llm)
    spliced = batch(backbone)

    def value(weights: torch.Tensor) -> torch.Tensor:
        mixture.set(weights)
        return valid(backbone, spliced).double().square().mean()

    weights = torch.tensor([0.4, 0.6], requires_grad=True)
    with backbone.adapted(Mixture(adapters)) as mixture:
        value(weights).backward()
        assert weights.grad is not None
        for i in range(2):
            step = torch.zeros(2)
            step[i] = 0.01
            with torch.no_grad():
                slope = (value(weights + step) - value(weights - step)) / 0.02
            assert float(weights.grad[i]) == pytest.approx(float(slope), rel=0.05, abs=1e-3)


def test_merge_honours_a_modules_own_rank_and_alpha(
    tiny_llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    file = adapters["a"] / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 32}}))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llm), str(adapters["a"]))
    backbone = load(tiny_llm)
    ids = torch.tensor([[0, 12, 55, 103]])
    with backbone.adapted(MergedLora(adapters["a"])):
        np.testing.assert_allclose(
            backbone.model(ids).logits.detach(), plain(ids).logits.detach(), atol=1e-4, rtol=1e-4
        )
