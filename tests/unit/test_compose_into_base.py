"""The base with a composite merged into it, against PEFT's own merge; and what must not change."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from earec_core.compose import Recipe, compose
from earec_core.errors import EarecError, IntegrityError, UsageError
from earec_core.export.into_base import merge_into_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def write_adapter(path: Path, shapes: dict[str, tuple[int, int]], r: int = 3, **config: Any) -> Path:
    """A PEFT directory of random factors; shapes are (d_out, d_in) by module."""
    generator = np.random.default_rng(r)
    tensors = {}
    for module, (d_out, d_in) in shapes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = generator.normal(size=(r, d_in)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = generator.normal(size=(d_out, r)).astype(np.float32)
    path.mkdir(parents=True)
    save_numpy(tensors, path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": r, "lora_alpha": 5, "target_modules": sorted(shapes), **config}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


def linear_shapes(llm: Path) -> dict[str, tuple[int, int]]:
    weights = tensors_of(llm)
    return {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in weights.items()
        if name.endswith(tuple(f"{one}.weight" for one in LINEAR))
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def header(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


def others(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }


def save_as(llm: Path, out: Path, dtype: torch.dtype, shards: str) -> Path:
    AutoModelForCausalLM.from_pretrained(llm, dtype=dtype).save_pretrained(out, max_shard_size=shards)
    return out


@pytest.fixture(scope="module")
def composite(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of all but the last block's down_proj, one of them rsLoRA, composed."""
    root = tmp_path_factory.mktemp("adapters")
    shapes = linear_shapes(tiny_llm)
    shapes.pop("model.layers.1.mlp.down_proj")
    paths = {
        "text": write_adapter(root / "text", shapes, 3),
        "vision": write_adapter(root / "vision", shapes, 2, use_rslora=True),
    }
    compose(paths, Recipe({"text": 0.4, "vision": 0.6}), root / "out")
    return root / "out"


@pytest.mark.parametrize("shards", ["1GB", "40KB"])
def test_it_is_pefts_merge(tiny_llm: Path, composite: Path, tmp_path: Path, shards: str) -> None:
    base = save_as(tiny_llm, tmp_path / "base", torch.float32, shards)
    assert len(list(base.glob("*.safetensors"))) == (1 if shards == "1GB" else 3)
    seen: list[tuple[int, int]] = []
    size = merge_into_base(composite, base, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert size == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    assert seen == [(n + 1, len(before)) for n in range(len(before))]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, composite).merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    shapes = linear_shapes(tiny_llm)
    shapes.pop("model.layers.1.mlp.down_proj")
    assert changed == {f"{module}.weight" for module in shapes}
    for name, value in after.items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-5)
    for path in base.glob("*.safetensors"):
        assert header(path) == header(tmp_path / "out" / path.name)
    assert others(base) == others(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        merged = model(input_ids=tokens).logits
        torch.testing.assert_close(loaded(input_ids=tokens).logits, merged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(
    tiny_llm: Path, composite: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """W + dW in float32, then rounded: exactly what torch gives of the same sum."""
    base = save_as(tiny_llm, tmp_path / "base", dtype, "1GB")
    merge_into_base(composite, base, tmp_path / "out")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    factors = load_file(composite / "adapter_model.safetensors")
    for name, value in after.items():
        assert value.dtype == dtype
        key = f"{PREFIX}{name.removesuffix('.weight')}.lora_{{}}.weight"
        if key.format("A") not in factors:
            assert torch.equal(value, before[name])
            continue
        change = factors[key.format("B")].double() @ factors[key.format("A")].double()
        exact = before[name].double() + change
        # At most one step of the type away from the exact sum, and mostly its nearest number.
        assert (value.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps
        assert (value == exact.to(dtype)).float().mean() > 0.999


def test_types_order_metadata_and_odd_tensors_stay(tmp_path: Path) -> None:
    """Buffers of other types, a tensor of no dimension, and an order that is not alphabetical."""
    base = tmp_path / "base"
    base.mkdir()
    tensors = {
        "z.weight": torch.randn(4, 3),
        "a.steps": torch.arange(5),
        "a.weight": torch.randn(6, 3).to(torch.bfloat16),
        "m.scalar": torch.tensor(2.5),
        "m.mask": torch.tensor([True, False]),
    }
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt", "who": "a test"})
    (base / "config.json").write_text("{}")
    adapter = write_adapter(tmp_path / "adapter", {"a": (6, 3)})
    merge_into_base(adapter, base, tmp_path / "out")
    assert header(tmp_path / "out" / "model.safetensors") == header(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in tensors if not torch.equal(tensors[name], after[name])} == {"a.weight"}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "a test"}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_fan_in_fan_out_is_honoured(tmp_path: Path) -> None:
    """GPT-2 keeps its weights as [d_in, d_out]; PEFT's own merge says what that means."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "base")
    shapes = {
        "transformer.h.0.attn.c_attn": (36, 12),
        "transformer.h.1.mlp.c_proj": (12, 48),
    }
    text = write_adapter(tmp_path / "text", shapes, fan_in_fan_out=True)
    before = tensors_of(tmp_path / "base")
    merge_into_base(text, tmp_path / "base", tmp_path / "out")
    wanted = PeftModel.from_pretrained(model, text).merge_and_unload().state_dict()
    after = tensors_of(tmp_path / "out")
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 2
    for name, value in after.items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-5)


def test_weights_of_other_formats_and_hidden_folders_stay_behind(
    tiny_llm: Path, composite: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_llm.iterdir():
        (base / path.name).symlink_to(path)  # as the hub's cache does
    for name in ("pytorch_model.bin", ".cache/x.json", "original/a.safetensors", "templates/chat.jinja"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    merge_into_base(composite, base, tmp_path / "out")
    kept = {*others(tiny_llm), "templates/chat.jinja"}
    assert set(others(tmp_path / "out")) == kept
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"model.layers.7.mlp.up_proj": (64, 32)}, r"no weight model\.layers\.7\.mlp\.up_proj\.weight\."),
        ({"lm_head": (258, 32)}, r"no weight lm_head\.weight: it shares the word embedding's"),
        ({"model.layers.0.mlp.up_proj": (32, 64)}, r"up_proj\.weight in .* is \[64, 32\] of F32.*\[32, 64\]"),
    ],
)
def test_a_module_that_the_base_has_not_is_named(
    shapes: dict[str, tuple[int, int]], message: str, tiny_llm: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", shapes)
    with pytest.raises(UsageError, match=message):
        merge_into_base(adapter, tiny_llm, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"a.weight": torch.zeros(6, 3, dtype=torch.int8)}, base / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", {"a": (6, 3)})
    with pytest.raises(UsageError, match=r"a\.weight in .* of I8.*not quantized"):
        merge_into_base(adapter, base, tmp_path / "out")


def test_too_large_for_the_bases_type_is_said(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"a.weight": torch.full((6, 3), 6e4).half()}, base / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", {"a": (6, 3)}, lora_alpha=3e4)
    with pytest.raises(UsageError, match=r"a\.weight .* too large for float16"):
        merge_into_base(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_a_full_disk_and_an_interrupt_leave_nothing(
    tiny_llm: Path, composite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    weights = (tiny_llm / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(IntegrityError, match="damaged or cut short"):
        merge_into_base(composite, base, tmp_path / "out")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_into_base(composite, tiny_llm, tmp_path / "out", progress=stop)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="exists already"):
        merge_into_base(composite, tiny_llm, tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EarecError, match=r"merged model could not be written .*No space left"):
            merge_into_base(composite, tiny_llm, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
    merge_into_base(composite, tiny_llm, tmp_path / "out")  # an empty directory may be filled


def test_memory_stays_at_a_few_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("earec_core.export.into_base._BLOCK", 1 << 12)
    shapes = {f"model.layers.{i}.mlp.up_proj": (256, 128) for i in range(40)}
    base = tmp_path / "base"
    base.mkdir()
    tensors = {f"{m}.weight": torch.zeros(shape, dtype=torch.bfloat16) for m, shape in shapes.items()}
    tensors["embed.weight"] = torch.zeros(4096, 128)
    save_file(tensors, base / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", shapes)
    tracemalloc.start()
    try:
        merge_into_base(adapter, base, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One tensor in float32 is 131 kB; the whole file, 4.7 MB.
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 4e6
    assert peak < 4e5
