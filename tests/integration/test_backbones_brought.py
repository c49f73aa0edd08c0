"""Backbones that users bring, through the commands: they work to the end, or exit 2 before anything is stored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from earec_registry import Registry

from .conftest import Pipeline


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=512))


def _mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**size, **heads, bos_token_id=0, eos_token_id=1))


def _mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    size = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return MambaForCausalLM(MambaConfig(**size, bos_token_id=0, eos_token_id=1))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (_gpt2, ""),
        (_mixtral, "MixtralExperts (down_proj, gate_up_proj), MixtralTopKRouter (gate)"),
        (_mamba, "MambaMixer (A_log)"),
    ],
)
def test_other_architectures_go_through_every_command(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, left: str
) -> None:
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "llm")
    for file in (*in_home.llm.glob("*token*"), *in_home.llm.glob("chat_template*")):
        shutil.copy(file, tmp_path / "llm")
    brought = Pipeline(in_home.folder, tmp_path / "llm")
    brought.registry = tmp_path / "registry"
    settings = brought.settings(align__epochs=1, align__max_items=8)
    data = ["--data", str(brought.data)]
    assert brought.run("align", "--modality", "text", *data, *settings) == 0
    noted = [line for line in capsys.readouterr().err.splitlines() if "LoRA leaves" in line]
    assert len(noted) == bool(left)
    assert all(left in line for line in noted)
    assert brought.run("explain", "text/things", *data, *settings) == 0
    assert brought.run("compose", "--weights", "text=0.5", "--no-normalize", "--name", "composite") == 0
    assert brought.run("encode", "composite", *data, *settings) == 0


def _with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')


def _without_layer(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "layers.1.mlp" not in n}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "said"), [(_with_adapter, "adapter_config.json"), (_without_layer, "lacks 3 tensors")]
)
def test_a_folder_that_is_not_the_model_is_refused_before_training(
    in_home: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    brought = Pipeline(in_home.folder, Path(shutil.copytree(in_home.llm, tmp_path / "llm")))
    brought.registry = tmp_path / "registry"
    spoil(brought.llm)
    data = ["--data", str(brought.data)]
    assert brought.run("align", "--modality", "text", *data, *brought.settings()) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not Registry.open(brought.registry).list().entries
