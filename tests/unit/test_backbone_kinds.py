"""Architectures beside Llama: transposed layers, fused experts, states in place of keys and values."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from earec_core.config import BackboneConfig, LoraSettings
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import MergedLora, Mixture, TrainableLora
from earec_core.llm.prompts import Prompt

PREFIX = (0, 10, 20, 30)
IDS = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
NARROW = {**IDS, "hidden_size": 32, "num_hidden_layers": 2}
SMALL = {**NARROW, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MIXER = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
SSM = ["Conv1d (conv1d)", "Linear (dt_proj, out_proj, x_proj)"]

# By its class: its configuration, and what LoRA leaves out of it.
KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "MistralForCausalLM": ({**SMALL, "sliding_window": 12}, []),
    "GPT2LMHeadModel": ({**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, []),
    "OpenAIGPTLMHeadModel": ({**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, []),
    "MambaForCausalLM": ({**NARROW, "state_size": 8}, [*SSM, "MambaMixer (A_log)"]),
    "FalconH1ForCausalLM": ({**SMALL, **MIXER}, ["Conv1d (conv1d)", "Linear (out_proj)"]),
    "Lfm2ForCausalLM": ({**SMALL, "full_attn_idxs": [1]}, ["Conv1d (conv)"]),
    "RwkvForCausalLM": (
        NARROW,
        [
            "RwkvFeedForward (time_mix_key, time_mix_receptance)",
            "RwkvSelfAttention (time_mix_key, time_mix_receptance, time_mix_value)",
        ],
    ),
    "MixtralForCausalLM": (
        {**SMALL, "num_local_experts": 4},
        ["MixtralExperts (down_proj, gate_up_proj)", "MixtralTopKRouter (gate)"],
    ),
    "Qwen3NextForCausalLM": (
        {
            **SMALL,
            **EXPERTS,
            **DELTA,
            "head_dim": 8,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        [
            "Conv1d (conv1d)",
            "Linear (down_proj, gate_proj, up_proj)",
            "Qwen3NextExperts (down_proj, gate_up_proj)",
            "Qwen3NextTopKRouter (gate)",
        ],
    ),
}


@pytest.fixture(scope="module")
def build(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random model of a class, built once."""
    folders: dict[str, Path] = {}

    def build(kind: str) -> Path:
        import transformers

        if not hasattr(transformers, kind):
            pytest.skip(f"this transformers has no {kind}")
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            architecture = getattr(transformers, kind)
            torch.manual_seed(0)
            architecture(architecture.config_class(**KINDS[kind][0])).save_pretrained(folders[kind])
            for file in (*tiny_llm.glob("*token*"), *tiny_llm.glob("chat_template*")):
                shutil.copy(file, folders[kind])
        return folders[kind]

    return build


def _load(folder: Path) -> Backbone:
    return Backbone.load(BackboneConfig(model=str(folder), dtype="float32", device="cpu"))


def _prompts() -> list[Prompt]:
    return [Prompt(i, (PREFIX, tuple(range(40, 43 + 2 * i)))) for i in range(3)]


def _ids(prompt: Prompt) -> torch.Tensor:
    return torch.tensor([[token for piece in prompt.pieces for token in piece]])  # type: ignore[union-attr]


def _train(backbone: Backbone, folder: Path) -> torch.Tensor:
    """Save an adapter of random factors; the logits of the first prompt under it."""
    with backbone.adapted(TrainableLora(LoraSettings(r=2))) as lora:
        for i, parameter in enumerate(lora.parameters.values()):
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
        backbone.hidden(backbone.splice(_prompts(), {})).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in lora.parameters.values())
        lora.save(folder)
        with torch.no_grad():
            logits: torch.Tensor = backbone.model(_ids(_prompts()[2])).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_texts_equal_plain_transformers(build: Callable[[str], Path], kind: str) -> None:
    backbone = _load(build(kind))
    batch = backbone.splice(_prompts(), {})
    texts = backbone.generate(batch, 6)
    with torch.no_grad():
        hidden = backbone.hidden(batch)
        for i, prompt in enumerate(_prompts()):
            ids = _ids(prompt)
            plain = backbone.model.base_model(input_ids=ids).last_hidden_state[0, len(PREFIX) :]
            torch.testing.assert_close(hidden[i, : len(plain)], plain, atol=1e-5, rtol=1e-5)
            start = ids.shape[1]
            while ids.shape[1] < start + 6 and (start == ids.shape[1] or ids[0, -1] != 1):
                ids = torch.cat([ids, backbone.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            assert texts[i] == backbone.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_works_in_plain_peft_merged_and_side_by_side(
    build: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    backbone = _load(build(kind))
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    logits = _train(backbone, tmp_path / "adapter")
    ids = _ids(_prompts()[2])
    with torch.no_grad():
        assert not torch.allclose(backbone.model(ids).logits, logits, atol=1e-4)
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(build(kind)), str(tmp_path / "adapter")
        )
        torch.testing.assert_close(plain(ids).logits, logits, atol=1e-5, rtol=1e-5)
        for adapter in (MergedLora(tmp_path / "adapter"), Mixture({"a": tmp_path / "adapter"})):
            with backbone.adapted(adapter):
                if isinstance(adapter, Mixture):
                    adapter.set({"a": 1.0})
                torch.testing.assert_close(backbone.model(ids).logits, logits, atol=1e-4, rtol=1e-4)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_lora_leaves_out_is_named(build: Callable[[str], Path], kind: str) -> None:
    assert _load(build(kind)).left_out() == KINDS[kind][1]


def test_nothing_is_left_out_of_a_llama(tiny_llm: Path) -> None:
    assert _load(tiny_llm).left_out() == []


def test_transposed_layers_are_merged_into_the_base(build: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from earec_core.export.into_base import merge_into_base

    logits = _train(_load(build("GPT2LMHeadModel")), tmp_path / "adapter")
    merge_into_base(tmp_path / "adapter", build("GPT2LMHeadModel"), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(_ids(_prompts()[2])).logits, logits, atol=1e-4, rtol=1e-4)


def test_a_model_without_linear_layers_is_refused(tiny_llm: Path) -> None:
    backbone = _load(tiny_llm)
    backbone.linear_modules = list  # type: ignore[method-assign]
    with (
        pytest.raises(UsageError, match="no linear layer that LoRA can adapt"),
        backbone.adapted(TrainableLora(LoraSettings(r=2))),
    ):
        pass


def test_an_architecture_that_does_not_run_is_one_sentence(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    def forward(*_: Any, **__: Any) -> None:
        raise AttributeError("no\nembeddings")

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(UsageError, match=r"does not run on text alone \(AttributeError: no embeddings\)"):
        _load(tiny_llm)


def _greedy(backbone: Backbone, prompt: Prompt, new: int) -> list[int]:
    """The likeliest tokens one after the other, each by transformers from the whole row; the end's is the last."""
    ids = torch.tensor([[token for piece in prompt.pieces for token in piece]])
    written: list[int] = []
    while len(written) < new and backbone.tokenizer.eos_token_id not in written:
        written.append(int(backbone.model(ids).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([written[-1:]])], dim=1)
    return written


@pytest.mark.parametrize(
    ("kind", "padding"),
    [("GPT2LMHeadModel", "behind"), ("Qwen3NextForCausalLM", "before"), ("FalconH1ForCausalLM", "before")],
)
def test_rows_that_end_are_no_part_of_the_others(
    build: Callable[[str], Path], kind: str, padding: str
) -> None:
    backbone = Backbone.load(BackboneConfig(model=str(build(kind)), dtype="float32", device="cpu"))
    assert backbone.abilities.generates == padding
    prompts = [Prompt(i, (PREFIX, tuple(range(40 + i, 40 + i + n)))) for i, n in enumerate((9, 1, 4, 6))]
    second = _greedy(backbone, prompts[0], 6)[1]
    backbone.tokenizer.eos_token = backbone.tokenizer.convert_ids_to_tokens(second)
    expected = [_greedy(backbone, prompt, 6) for prompt in prompts]
    assert backbone.continued(backbone.splice(prompts, {}), 6) == expected


def test_texts_are_right_beyond_a_window_of_attention(build: Callable[[str], Path]) -> None:
    folder = build("MistralForCausalLM")
    backbone = Backbone.load(BackboneConfig(model=str(folder), dtype="float32", device="cpu"))
    assert backbone.window == 12
    assert backbone.abilities.generates
    prompts = [Prompt(i, (PREFIX, tuple(range(40, 40 + n)))) for i, n in enumerate((15, 1, 4))]
    texts = backbone.generate(backbone.splice(prompts, {}), 6)
    expected = [_greedy(backbone, prompt, 6) for prompt in prompts]
    decoded = backbone.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert texts == [text.strip() for text in decoded]
