"""Adapters side by side on a backbone, against PEFT's loader, merged weights and a layer-by-layer loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from earec_core.compose import Recipe, compose
from earec_core.config import BackboneConfig, LoraSettings
from earec_core.llm.backbone import Backbone, save_lora
from earec_core.llm.lora import Mixture, merge
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot

WEIGHTS = {"a": 0.2, "b": 0.8}


def load(tiny_llm: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))


@pytest.fixture
def adapters(tiny_llm: Path, tmp_path: Path) -> dict[str, Path]:
    found = {}
    for seed, (name, rank) in enumerate({"a": 4, "b": 2}.items()):
        backbone = load(tiny_llm)
        settings = LoraSettings(r=rank, alpha=8)
        parameters = backbone.attach_lora(settings)
        for i, parameter in enumerate(parameters.values()):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(100 * seed + i))
        save_lora(tmp_path / name, parameters, settings, backbone.info)
        found[name] = tmp_path / name
    return found


def batch(backbone: Backbone, *, shared: bool = True) -> object:
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


def valid(backbone: Backbone, spliced: object) -> torch.Tensor:
    hidden = backbone.hidden(spliced)  # type: ignore[arg-type]
    return torch.cat([hidden[i, :n] for i, n in enumerate(spliced.lengths.tolist())])  # type: ignore[attr-defined]


def test_weighted_adapters_equal_the_exact_composite(
    tiny_llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    compose(adapters, Recipe(WEIGHTS), tmp_path / "merged")
    merged, mixed = load(tiny_llm), load(tiny_llm)
    merge(merged, tmp_path / "merged")
    mixture = Mixture(mixed, adapters)
    mixture.set(WEIGHTS)
    torch.testing.assert_close(valid(mixed, batch(mixed)), valid(merged, batch(merged)), atol=1e-4, rtol=1e-4)
    plain = valid(load(tiny_llm), batch(mixed))
    mixture.remove()
    assert torch.equal(valid(mixed, batch(mixed)), plain)


def test_layer_weights_equal_those_that_compose_takes(
    tiny_llm: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    layers = {0: {"a": 1.0, "b": 0.0}, 1: {"a": 0.3, "b": 0.7}}
    compose(adapters, Recipe(WEIGHTS, layer_weights=layers), tmp_path / "merged")
    merged, mixed = load(tiny_llm), load(tiny_llm)
    merge(merged, tmp_path / "merged")
    mixture = Mixture(mixed, adapters)
    assert mixture.layers == 2
    mixture.set(torch.tensor([[1.0, 0.0], [0.3, 0.7]]))
    torch.testing.assert_close(valid(mixed, batch(mixed)), valid(merged, batch(merged)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_each_position_takes_its_own_route(tiny_llm: Path, adapters: dict[str, Path], shared: bool) -> None:
    """Against backbones that hold one adapter each, swapped position by position in the first layer's queries."""
    backbone = load(tiny_llm)
    mixture = Mixture(backbone, adapters)
    mixture.set(WEIGHTS, own={"a": "a", "b": "b"})
    name = "model.layers.0.self_attn.q_proj"
    seen: dict[str, torch.Tensor] = {}
    layer = backbone.model.get_submodule(name)
    layer.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    spliced = batch(backbone, shared=shared)
    backbone.hidden(spliced)  # type: ignore[arg-type]
    base = load(tiny_llm).model.get_submodule(name)
    change = {}
    for key in adapters:
        single = load(tiny_llm)
        merge(single, adapters[key])
        change[key] = single.model.get_submodule(name).weight - base.weight
    owners = spliced.owners  # type: ignore[attr-defined]
    assert {"a", "b"} == set(spliced.modalities)  # type: ignore[attr-defined]
    for i in range(3):
        for j in range(owners.shape[1]):
            route = {-1: {**WEIGHTS}, 0: {"a": 1.0}, 1: {"b": 1.0}}[int(owners[i, j])]
            weight = base.weight + sum(w * change[key] for key, w in route.items())
            torch.testing.assert_close(seen["y"][i, j], seen["x"][i, j] @ weight.T, atol=1e-4, rtol=1e-4)


def test_routes_do_not_depend_on_the_batch_and_reach_generation(
    tiny_llm: Path, adapters: dict[str, Path]
) -> None:
    backbone = load(tiny_llm)
    mixture = Mixture(backbone, adapters)
    mixture.set(WEIGHTS)
    unrouted = valid(backbone, batch(backbone))
    mixture.set(WEIGHTS, own={"a": "a", "b": "b"})
    routed = valid(backbone, batch(backbone))
    assert not torch.allclose(routed, unrouted, atol=1e-2)
    backbone.share_prefix = False
    torch.testing.assert_close(valid(backbone, batch(backbone)), routed, atol=1e-4, rtol=1e-4)
    spliced = batch(backbone)
    logits = backbone.logits(backbone.hidden(spliced)[torch.arange(3), spliced.lengths - 1])  # type: ignore
    said = backbone.generate(spliced, 1)  # type: ignore[arg-type]
    first = [
        backbone.tokenizer.decode([i], skip_special_tokens=True).strip() for i in logits.argmax(-1).tolist()
    ]
    assert said == first


def test_the_weights_have_the_gradient_of_finite_differences(
    tiny_llm: Path, adapters: dict[str, Path]
) -> None:
    backbone = load(tiny_llm)
    mixture = Mixture(backbone, adapters)
    spliced = batch(backbone)

    def value(weights: torch.Tensor) -> torch.Tensor:
        mixture.set(weights)
        return valid(backbone, spliced).double().square().mean()

    weights = torch.tensor([0.4, 0.6], requires_grad=True)
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
    merge(backbone, adapters["a"])
    ids = torch.tensor([[0, 12, 55, 103]])
    np.testing.assert_allclose(
        backbone.model(ids).logits.detach(), plain(ids).logits.detach(), atol=1e-4, rtol=1e-4
    )
