"""Whatever sits on the LLM comes off again: weights bit for bit, layers the same objects, one adapter at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import EarecError, IntegrityError
from earec_core.llm.backbone import Adapter, Backbone
from earec_core.llm.lora import MergedLora, Mixture, TrainableLora
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot

Make = Callable[[Path], Adapter]


def _mixture(folder: Path) -> Mixture:
    mixture = Mixture({"a": folder, "b": folder})
    mixture.set({"a": 0.3, "b": 0.7}, own={"v": "a"})
    return mixture


FORMS: dict[str, Make] = {
    "trained": lambda _: TrainableLora(LoraSettings(r=4, dropout=0.1)),
    "merged": MergedLora,
    "side by side": _mixture,
}


@pytest.fixture
def backbone(tiny_llm: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(tiny_llm), dtype="float32", device="cpu"))


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    """A stored adapter whose numbers are such that adding and subtracting it would not give the weights back."""
    with backbone.adapted(TrainableLora(LoraSettings(r=4))) as lora:
        for i, parameter in enumerate(lora.parameters.values()):
            parameter.data.normal_(0, 3, generator=torch.Generator().manual_seed(i))
        lora.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def _state(backbone: Backbone) -> dict[str, Any]:
    model = backbone.model
    return {
        "modules": {name: (id(m), type(m), m.training) for name, m in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "parameters": {name: (id(p), p.requires_grad, p.dtype) for name, p in model.named_parameters()},
        "bytes": {name: t.numpy().tobytes() for name, t in model.state_dict().items()},
        "buffers": [name for name, _ in model.named_buffers()],
        "attributes": set(vars(model)),
        "adapter": backbone.adapter,
    }


def _run(backbone: Backbone) -> tuple[torch.Tensor, list[str]]:
    slots = {Slot("v", i): torch.randn(2, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)}
    prompts = [Prompt(i, ((0, 10), Slot("v", i), (20, 30 + i))) for i in range(2)]
    spliced = backbone.splice(prompts, slots)
    return backbone.hidden(spliced), backbone.generate(spliced, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_llm_is_what_it_was(form: str, fails: bool, backbone: Backbone, folder: Path) -> None:
    before, plain = _state(backbone), _run(backbone)[0]
    adapter = FORMS[form](folder)
    for _ in range(2):  # twice, as a run over several models does
        try:
            with backbone.adapted(adapter):
                if isinstance(adapter, TrainableLora):
                    adapter.train(True)
                    for parameter in adapter.parameters.values():
                        parameter.data.fill_(0.1)
                hidden, _ = _run(backbone)
                if isinstance(adapter, TrainableLora):
                    hidden.sum().backward()
                assert not torch.allclose(hidden, plain)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert _state(backbone) == before
    assert torch.equal(_run(backbone)[0], plain)


def test_the_adapter_would_not_come_off_by_subtracting(backbone: Backbone, folder: Path) -> None:
    """So that the test above can fail."""
    weight = backbone.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with backbone.adapted(MergedLora(folder)):
        delta = weight.detach() - before
        assert not torch.equal(weight.detach() - delta, before)


@pytest.mark.parametrize("form", ["merged", "side by side"])
def test_an_adapter_that_fails_half_way_leaves_nothing(form: str, backbone: Backbone, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    last = max(tensors)
    tensors[last][0, 0] = np.nan
    save_file(tensors, file)
    before = _state(backbone)
    with pytest.raises(IntegrityError, match="NaN"), backbone.adapted(FORMS[form](folder)):
        pass
    assert _state(backbone) == before


@pytest.mark.parametrize("outer", FORMS)
@pytest.mark.parametrize("inner", FORMS)
def test_one_adapter_at_a_time(outer: str, inner: str, backbone: Backbone, folder: Path) -> None:
    with backbone.adapted(FORMS[outer](folder)) as adapter:
        within = _state(backbone)
        with pytest.raises(EarecError, match="has an adapter on it already"):
            with backbone.adapted(FORMS[inner](folder)):
                pass
        assert _state(backbone) == within
        assert backbone.adapter is adapter
