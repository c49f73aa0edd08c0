"""A composite loads with plain PEFT and gives the logits of weights merged by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from earec_core.compose import Recipe, compose

# PEFT 0.21 itself reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIONS: dict[str, dict[str, Any]] = {
    "text": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "lora_dropout": 0.05},
    "vision": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "behavior": {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["v_proj", "down_proj", "lm_head"],
        "rank_pattern": {"layers.1.mlp.down_proj": 5},
        "alpha_pattern": {"v_proj": 3},
        "layers_to_transform": None,
    },
}


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def adapters(base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    paths = {}
    for name, options in OPTIONS.items():
        model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **options))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(root / name, save_embedding_layers=False)
        paths[name] = root / name
    return paths


def logits(base: LlamaForCausalLM, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = PeftModel.from_pretrained(copy.deepcopy(base), adapter)
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def merged_by_hand(
    base: LlamaForCausalLM, adapters: dict[str, Path], weights: dict[str, float]
) -> LlamaForCausalLM:
    """Add each adapter's change, as PEFT itself computes it, to the weights."""
    result = copy.deepcopy(base)
    for name, path in adapters.items():
        model = PeftModel.from_pretrained(copy.deepcopy(base), path)
        for key, layer in model.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                result.get_submodule(key).weight.data += weights[name] * layer.get_delta_weight("default")
    return result


@pytest.mark.parametrize(
    "weights",
    [
        {"text": 0.05, "vision": 0.05, "behavior": 0.9},
        {"text": 0.0, "vision": 0.5, "behavior": 0.5},
    ],
)
def test_composite_gives_the_logits_of_weights_merged_by_hand(
    weights: dict[str, float],
    base: LlamaForCausalLM,
    adapters: dict[str, Path],
    tokens: torch.Tensor,
    tmp_path: Path,
) -> None:
    compose(adapters, Recipe(weights), tmp_path / "out")
    with torch.no_grad():
        wanted = merged_by_hand(base, adapters, weights)(input_ids=tokens).logits
    found = logits(base, tmp_path / "out", tokens)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert (base(input_ids=tokens).logits - wanted).abs().max() > 0.01


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_weight_one_gives_the_adapters_logits(
    name: str, base: LlamaForCausalLM, adapters: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    compose(adapters, Recipe({other: float(other == name) for other in adapters}), tmp_path / "out")
    wanted = logits(base, adapters[name], tokens)
    torch.testing.assert_close(logits(base, tmp_path / "out", tokens), wanted, atol=1e-5, rtol=0)


def test_truncated_and_half_precision_composites_load(
    base: LlamaForCausalLM, adapters: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    weights = {"text": 0.3, "vision": 0.3, "behavior": 0.4}
    compose(adapters, Recipe(weights), tmp_path / "full")
    report = compose(adapters, Recipe(weights, rank=8), tmp_path / "rank8")
    compose(adapters, Recipe(weights, dtype="bfloat16"), tmp_path / "half")
    wanted = logits(base, tmp_path / "full", tokens)
    assert report.rank == 8
    assert 0 < report.relative_error < 0.2
    for name, bound in (("rank8", 0.3), ("half", 0.1)):
        error = logits(base, tmp_path / name, tokens) - wanted
        assert error.norm() < bound * wanted.norm()
