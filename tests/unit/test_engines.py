"""What an engine is asked for, refused, and said to hold in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from earec_core.align.planning import weighed
from earec_core.align.shapes import sizes
from earec_core.config import EngineConfig, LoraSettings, resolve
from earec_core.errors import MissingDependencyError, UsageError
from earec_core.train import engine
from earec_core.train.engine import MakeEngine, TorchEngine, engine_of
from earec_core.train.memory import Sizes, held
from earec_core.train.processes import Processes
from earec_core.train.zero import Zero

Known = Mapping[str, tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
CONFIGS = Path(__file__).parents[2] / "examples/configs"


def _asked(tmp_path: Path, file: Any, **settings: Any) -> Zero:
    path = tmp_path / "zero.json"
    path.write_text(file if isinstance(file, str) else json.dumps(file))
    return Zero.of(EngineConfig(name="deepspeed", file=str(path), **settings))


def test_a_deepspeed_file_is_what_runs_and_auto_says_nothing(tmp_path: Path) -> None:
    file = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": "auto"},
    }
    zero = _asked(tmp_path, file)
    assert (zero.stage, zero.offload) == (3, "all")
    given = zero.deepspeed(clip=0.5)
    assert given["gradient_clipping"] == 0.5
    assert given["wall_clock_breakdown"] is True
    assert "bf16" not in given
    assert "fp16" not in given
    offloaded = given["zero_optimization"]
    assert offloaded["offload_param"] == offloaded["offload_optimizer"] == {"device": "cpu"}
    assert isinstance(offloaded["reduce_bucket_size"], int)


@pytest.mark.parametrize(
    ("file", "settings", "problem"),
    [
        ({"optimizer": {"type": "Adam"}}, {}, "optimizer .* is decided by align.lr"),
        ({"gradient_clipping": 2.0}, {}, "gradient_clipping .* is decided by align.clip"),
        ({"train_batch_size": 8}, {}, "train_batch_size .* is decided by align.batch_size"),
        ({"bf16": {"enabled": True}}, {}, "bf16 .* is decided by backbone.dtype"),
        ({"zero_optimization": {"stage": 0}}, {}, "stage 0"),
        ({"zero_optimization": {"stage": 2}}, {"stage": 3}, "engine.stage is 3, but .* says stage 2"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, {}, "at stage 3 alone, not at 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, {}, "names the device 'nvme'"),
        ("[1]", {}, "holds no JSON object"),
        ("{", {}, "is not JSON"),
    ],
)
def test_what_contradicts_a_runs_settings_is_refused(
    file: Any, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=problem):
        _asked(tmp_path, file, **settings)


def test_an_engine_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_of(EngineConfig()) is TorchEngine
    with pytest.raises(UsageError, match=r"engine\.stage is a setting of DeepSpeed"):
        engine_of(EngineConfig(stage=2))
    with pytest.raises(UsageError, match="cannot be read"):
        engine_of(EngineConfig(name="deepspeed", file="nowhere.json"))
    monkeypatch.setattr(engine, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'earec\[deepspeed\]'"):
        engine_of(EngineConfig(name="deepspeed"))


class Small(nn.Module):
    """What an aligned LLM has: frozen layers in bfloat16, a table with a tied head, an adapter that is one step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6).requires_grad_(False)
        self.frozen = nn.Linear(6, 6).bfloat16().requires_grad_(False)
        a, b = nn.Linear(6, 3, bias=False), nn.Linear(3, 6)
        self.adapter = nn.Sequential(a, b)
        self.adapter.forward = lambda h: F.linear(F.linear(h, a.weight), b.weight, b.bias)
        self.first = nn.Linear(5, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + self.table(torch.arange(len(x)))
        y: torch.Tensor = self.frozen(h.bfloat16()).float() + self.adapter(h)
        return self.head(y).square().sum()


def _trained(make: MakeEngine, steps: Sequence[int], known: Known | None = None) -> Known:
    """Parameters and AdamW's state after these steps, of two parts each; the first two steps hold a group."""
    model = Small()
    held_ones = list(model.adapter.parameters())
    optimizer = torch.optim.AdamW([{"params": held_ones, "lr": 0.0}, {"params": model.first.parameters()}])
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, (value, state) in (known or {}).items():
        parameters[name].data.copy_(value)
        optimizer.state[parameters[name]] = dict(state)
    own = make(optimizer, 0.5, Processes())
    x = torch.randn(9, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    with own.around(model, parameters.values()) as loss:
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            for part, around in zip(x[step], (own.no_sync(), nullcontext()), strict=True):
                with around:
                    own.backward(loss(part))
            own.step(held=held_ones if step < 2 else ())
        found = {n: (own.value(p).clone(), dict(own.state(p))) for n, p in parameters.items()}
    for name, (value, _) in found.items():
        assert torch.equal(parameters[name].data, value)
    return found


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "nothing"), (2, "nothing"), (2, "optimizer"), (3, "nothing"), (3, "all")]
)
def test_zero_takes_the_steps_of_plain_torch(
    stage: int, offload: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Accumulated, clipped and held parts, and going on from the other engine's state."""
    for variable in ("LOCAL_RANK", "DS_ACCELERATOR"):
        monkeypatch.setenv(variable, {"LOCAL_RANK": "0"}.get(variable, "cpu"))
    zero = engine_of(EngineConfig.model_validate({"name": "deepspeed", "stage": stage, "offload": offload}))
    expected = _trained(TorchEngine, range(6))
    alternating = _trained(zero, range(4, 6), _trained(TorchEngine, range(3, 4), _trained(zero, range(3))))
    for name, (value, state) in expected.items():
        other, its = alternating[name]
        torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
        assert its.keys() == state.keys()
        for key in state:
            torch.testing.assert_close(its[key], state[key], rtol=1e-4, atol=1e-7)
    assert capfd.readouterr().out == ""


def test_zero_divides_what_its_stage_says() -> None:
    """By hand, for a million trained parameters (T bytes each in float32) and four processes."""
    t = 4 * 10**6
    of = Sizes(frozen=10**8, width=2, tables=10**5, trained=10**6, batch=10**7)
    bucket = 4 * 10**6
    expected = {
        1: {"weights": 10**8, "adapter and optimizer": t + (t + t // 4) + 3 * t // 4, "exchange": bucket},
        2: {"weights": 10**8, "adapter and optimizer": t + 2 * t // 4 + 3 * t // 4, "exchange": bucket},
    }
    settings = {"name": "deepspeed"}
    for stage, device in expected.items():
        config = EngineConfig.model_validate({**settings, "stage": stage})
        found = held(of, config, 4)
        found_device = {**found.device, "exchange": found.device["exchange"] // 50}
        assert found_device == {**device, "a batch": 10**7}
        assert found.host == {"best parameters": t}
    whole = held(of, EngineConfig.model_validate({**settings, "stage": 3}), 4)
    assert whole.device["weights"] == 10**8 // 4 + 10**5
    assert whole.device["adapter and optimizer"] == (1 + 2 + 3) * t // 4
    away = held(of, EngineConfig.model_validate({**settings, "stage": 3, "offload": "all"}), 4)
    assert (away.device["weights"], away.device["adapter and optimizer"]) == (10**5, 0)
    divided = 10**8 // 4 + whole.device["adapter and optimizer"]
    assert away.host["weights"] + away.host["optimizer"] == divided
    assert held(of, EngineConfig(), 1).device["adapter and optimizer"] == 4 * t


def _llama(**shapes: int) -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=4096, **shapes)


def test_shapes_alone_say_what_a_pass_keeps() -> None:
    """Against the same model with numbers in it."""
    config = _llama(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    found = sizes(
        config,
        LoraSettings(r=4),
        projector=10,
        rows=2,
        shared=10,
        positions=40,
        answer=5,
        dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert found.frozen == 4 * sum(p.numel() for p in model.parameters())
    assert found.tables == 4 * 300 * 64
    layers = [m for n, m in model.named_modules() if n.endswith("_proj")]
    assert found.trained == 10 + sum(4 * (m.in_features + m.out_features) for m in layers)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with weighed(model.parameters()) as kept:
        logits = model(inputs_embeds=torch.zeros(2, 40, 64, requires_grad=True), use_cache=False).logits
        loss = F.cross_entropy(logits[:, -5:].flatten(0, 1), torch.zeros(10, dtype=torch.long))
    assert loss.requires_grad
    # The plain model keeps no inputs of adapters, but logits of every position.
    assert 0.7 * kept() < found.batch < 2 * kept()


def test_the_example_configurations_need_the_memory_that_their_page_says() -> None:
    config = _llama(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    rows = re.findall(
        r"^\| `(\S+\.json|nf4)` \| (\d+) \| (\d+) \|(.*)\|$",
        (CONFIGS / "README.md").read_text(),
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == {"nf4", *(path.name for path in CONFIGS.glob("*.json"))}
    room = {"vicuna-7b-4x24gb.json": 24, "vicuna-7b-1x80gb.json": 80, "nf4": 24}
    for name, processes, items, cells in rows:
        packed = name == "nf4"
        of = sizes(
            config,
            resolve("paper").lora,
            projector=20_979_712,
            rows=int(items),
            shared=64,
            positions=960,
            answer=64,
            quantization="nf4" if packed else "none",
        )
        engine = EngineConfig() if packed else EngineConfig(name="deepspeed", file=str(CONFIGS / name))
        memory = held(of, engine, int(processes))
        figures = [*memory.device.values(), sum(memory.device.values()), sum(memory.host.values())]
        said = [float(cell.strip(" *")) for cell in cells.split("|")]
        assert said == [pytest.approx(size / 2**30, abs=0.02) for size in figures]
        # A tenth is left to what the model of memory leaves out.
        assert sum(memory.device.values()) < 0.9 * room[name] * 10**9
