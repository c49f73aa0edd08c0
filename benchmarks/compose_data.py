"""What `benchmarks/compose.py` composes: random base models and adapters, and the exact sum to check against."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compose_worker import WEIGHTS
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Shape:
    """A Llama, and the LoRA adapters on all seven linear layers of each of its layers."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool
    rank: int

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by module."""
        key_value = self.hidden // self.heads * self.key_value_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def modules(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by the module's name in the model."""
        return {
            f"model.layers.{layer}.{name}": size
            for layer in range(self.layers)
            for name, size in self.linear.items()
        }


def write_base(path: Path, shape: Shape, dtype: torch.dtype) -> None:
    """Write a random base model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.tied,
    )
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(path)


def write_adapters(root: Path, shape: Shape, dtype: torch.dtype, shared_a: bool = False) -> None:
    """Write one random adapter per weight: A ~ N(0, 1 / d_in), B ~ N(0, 1e-4)."""
    for seed, name in enumerate(WEIGHTS):
        first = torch.Generator().manual_seed(0 if shared_a else seed)
        second = torch.Generator().manual_seed(100 + seed)
        tensors = {}
        for module, (d_out, d_in) in shape.modules().items():
            a = torch.randn(shape.rank, d_in, generator=first) * d_in**-0.5
            b = torch.randn(d_out, shape.rank, generator=second) * 0.01
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a.to(dtype)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.to(dtype)
        (root / name).mkdir(parents=True)
        save_file(tensors, root / name / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": shape.rank,
            "lora_alpha": 2 * shape.rank,
            "target_modules": [module.rsplit(".", 1)[1] for module in shape.linear],
        }
        (root / name / "adapter_config.json").write_text(json.dumps(settings))


Change = Callable[[str, np.ndarray | None], np.ndarray]
"""A module's dW in float64, or dW @ probe."""


def adapter_change(path: Path) -> Change:
    """dW = alpha / r * B @ A of a PEFT directory."""
    config = json.loads((path / "adapter_config.json").read_text())
    assert not config.get("rank_pattern"), path
    assert not config.get("alpha_pattern"), path
    scale = config["lora_alpha"] / config["r"]

    def change(module: str, probe: np.ndarray | None) -> np.ndarray:
        with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
            a, b = (file.get_tensor(f"{PREFIX}{module}.lora_{x}.weight").double().numpy() for x in "AB")
        return scale * (b @ (a if probe is None else a @ probe))

    return change


def model_change(path: Path, base: Path) -> Change:
    """dW = merged - base of a whole model, in one file each."""

    def change(module: str, probe: np.ndarray | None) -> np.ndarray:
        weights = []
        for folder in (path, base):
            (file_path,) = folder.glob("*.safetensors")
            with safe_open(file_path, framework="pt") as file:
                weights.append(file.get_tensor(f"{module}.weight").double().numpy())
        dense = weights[0] - weights[1]
        return dense if probe is None else dense @ probe

    return change


def relative_errors(
    root: Path, shape: Shape, found: dict[str, Change], probes: int | None = None
) -> dict[str, float]:
    """||found - exact||_F / ||exact||_F over all modules, by contestant.

    Args:
        root: where the adapters are.
        found: each contestant's result.
        probes: multiply every dW by that many random vectors, in place of forming it; it estimates the same
            ratio, and two different dW still differ.
    """
    generator = np.random.default_rng(0)
    parts = {name: adapter_change(root / name) for name in WEIGHTS}
    squared, norm = dict.fromkeys(found, 0.0), 0.0
    for module, (_, d_in) in shape.modules().items():
        probe = None if probes is None else generator.standard_normal((d_in, probes))
        exact = sum(weight * parts[name](module, probe) for name, weight in WEIGHTS.items())
        norm += float(np.sum(exact**2))
        for name, change in found.items():
            squared[name] += float(np.sum((change(module, probe) - exact) ** 2))
    return {name: (value / norm) ** 0.5 for name, value in squared.items()}
