"""The frozen layers in 4 bits: NF4 by its definition, LoRA's gradients those of the weights that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from earec_core.align.shapes import sizes
from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import MissingDependencyError
from earec_core.llm import packed as packing
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import TrainableLora
from earec_core.llm.packed import PackedLinear
from earec_core.llm.prompts import Prompt
from earec_core.testing import tiny_backbone

PROMPTS = [Prompt(0, ((1, 2, 3), (4, 5, 6, 7))), Prompt(1, ((1, 2, 3), (9, 8)))]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows are whole blocks."""
    return tiny_backbone(tmp_path_factory.mktemp("llm"), hidden=64)


def _load(llm: Path, **more: Any) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(llm), dtype="float32", device="cpu"), **more)


def _weights(packed: nn.Module) -> torch.Tensor:
    """What a packed layer stands for, from what it multiplies a unit matrix to."""
    assert isinstance(packed, PackedLinear)
    with torch.no_grad():
        product: torch.Tensor = packed(torch.eye(packed.in_features)).T
    return product if packed.bias is None else product - packed.bias[:, None]


def _nf4() -> torch.Tensor:
    """The 16 levels of NF4 (Dettmers et al., arXiv 2305.14314, appendix E)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    levels = torch.cat([above, torch.zeros(1), below]).sort().values
    return levels / levels.max()


def test_a_packed_layer_stands_for_the_nearest_levels_of_nf4(llm: Path) -> None:
    plain, packed = _load(llm), _load(llm, quantization="nf4")
    assert packed.linear_modules() == plain.linear_modules()
    assert packed.multiplied() == plain.multiplied()
    assert packed.left_out() == plain.left_out()
    name = plain.linear_modules()[0]
    layer, weight = packed.model.get_submodule(name), plain.model.get_submodule(name).weight
    # The largest of each 64 weights scales them.
    blocks = weight.detach().flatten().view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = _nf4()
    nearest = levels[(blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)] * scale
    # The scales are quantised, too, in 8 bits.
    torch.testing.assert_close(
        _weights(layer), nearest.view_as(weight), atol=0.01 * float(scale.max()), rtol=0
    )


def _gradients(backbone: Backbone, dropout: float = 0.0) -> dict[str, torch.Tensor]:
    with backbone.adapted(TrainableLora(LoraSettings(r=4, dropout=dropout))) as lora:
        for i, parameter in enumerate(lora.parameters.values()):
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
        states = backbone.hidden(backbone.splice(PROMPTS, {}))
        # Not their squares: normed, those sum to the width whatever the weights.
        (states * torch.linspace(-1, 1, states.shape[-1])).sum().backward()
        return {name: p.grad.clone() for name, p in lora.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_are_those_of_a_plain_llm_of_the_weights_that_the_packed_ones_stand_for(
    llm: Path, dropout: float
) -> None:
    # With dropout it is PEFT's layers that compute; in evaluation mode nothing is dropped.
    plain, packed = _load(llm), _load(llm, quantization="nf4")
    before = _gradients(plain)
    with torch.no_grad():
        for name in plain.linear_modules():
            plain.model.get_submodule(name).weight.copy_(_weights(packed.model.get_submodule(name)))
    found, expected = _gradients(packed, dropout), _gradients(plain, dropout)
    assert found.keys() == expected.keys() == before.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-3)
    assert any(not torch.allclose(before[name], gradient, rtol=1e-2) for name, gradient in expected.items())


def test_a_packed_llm_takes_less_and_is_itself_again_without_an_adapter(llm: Path) -> None:
    plain, packed = _load(llm), _load(llm, quantization="nf4")
    saved = plain.weight_bytes() - packed.weight_bytes()
    # Half a byte each, and one for the scale of 64.
    assert saved == pytest.approx((4 - 0.5 - 1 / 64) * plain.multiplied(), rel=0.01)
    before = packed.hidden(packed.splice(PROMPTS, {}))
    _gradients(packed)
    assert torch.equal(packed.hidden(packed.splice(PROMPTS, {})), before)


def test_the_cost_model_knows_what_packed_weights_take(llm: Path) -> None:
    packed = _load(llm, quantization="nf4")
    lora = LoraSettings(r=4)
    shape = {"projector": 0, "rows": 1, "shared": 2, "positions": 4, "answer": 2, "dtype": torch.float32}
    of = sizes(AutoConfig.from_pretrained(llm), lora, quantization="nf4", **shape)
    assert of.frozen == pytest.approx(packed.weight_bytes(), rel=1e-3)


def test_what_it_needs_is_said_before_anything_is_loaded(llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"needs bitsandbytes.*pip install 'earec\[4bit\]'"):
        _load(llm / "nowhere", quantization="nf4")
