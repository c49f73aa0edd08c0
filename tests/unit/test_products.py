"""LoRA in one step and attention for short rows, against PEFT and against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from earec_core.llm.attention import attend
from earec_core.llm.layers import adapted, keep_in
from earec_core.llm.products import Casts, LoraLinear


class _Two(nn.Module):
    """Two layers that read the same input, as attention's projections do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) * self.second(x)


def _adapted(seed: int) -> _Two:
    torch.manual_seed(seed)
    model = _Two().requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"]), model, adapter_name="default"
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def _in_one_step(model: _Two) -> _Two:
    casts = Casts()
    for layer in (model.first, model.second):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        layer.forward = LoraLinear(layer.base_layer, a, b, layer.scaling["default"], casts)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("bfloat16", [False, True])
def test_lora_in_one_step_has_the_values_and_gradients_of_pefts_layers(bfloat16: bool) -> None:
    results = []
    for own in (False, True):
        model = _adapted(0)
        if own:
            model = _in_one_step(model)
        x = torch.linspace(-2, 2, 2 * 4 * 6).view(2, 4, 6).requires_grad_()
        for _ in range(2):  # a second pass over the same input adds to the gradients
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                y = model(x)
            y.float().square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((y.detach().float(), x.grad, grads))
    (y, d_x, grads), (own_y, own_d_x, own_grads) = results
    assert grads.keys() == own_grads.keys()
    pairs = [(own_y, y), (own_d_x, d_x), *((own_grads[name], grad) for name, grad in grads.items())]
    for own_value, value in pairs:
        assert own_value is not None
        assert value is not None
        assert (own_value - value).norm() <= (0.02 if bfloat16 else 1e-6) * value.norm()


def test_an_input_that_changed_in_place_is_cast_again() -> None:
    model, x = _in_one_step(_adapted(0)), torch.ones(1, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        x.mul_(2)
        after = model(x)
        again = model(torch.full((1, 6), 2.0))
    assert not torch.equal(before, after)
    assert torch.equal(after, again)


def test_what_it_gives_may_be_changed_in_place() -> None:
    model = _in_one_step(_adapted(0))
    x = torch.ones(2, 3, 6, requires_grad=True)
    model.first(x).mul_(2).sum().backward()
    doubled = x.grad
    x.grad = None
    (2 * model.first(x)).sum().backward()
    assert doubled is not None
    assert torch.equal(doubled, x.grad)


class _Attention(nn.Module):
    is_causal = True
    num_key_value_groups = 3


@pytest.mark.parametrize(
    ("mask", "queries"), [("none", 1), ("none", 7), *((m, n) for m in ("bool", "float") for n in (1, 4, 7))]
)
def test_short_attention_is_that_of_torch_with_its_gradients(mask: str, queries: int) -> None:
    torch.manual_seed(0)
    b, heads, kept, keys, d = 2, 6, 2, 7, 4
    allowed = torch.rand(b, 1, queries, keys) < 0.7
    allowed[..., 0] = True
    masks = {"none": None, "bool": allowed, "float": torch.where(allowed, 0.0, -torch.inf)}
    results = []
    for function in (sdpa_attention_forward, attend):
        generator = torch.Generator().manual_seed(1)
        q, k, v = (
            torch.randn(b, n, s, d, generator=generator).requires_grad_()
            for n, s in ((heads, queries), (kept, keys), (kept, keys))
        )
        y, _ = function(_Attention(), q, k, v, masks[mask], scaling=0.3)
        F.mse_loss(y, torch.ones_like(y)).backward()
        results.append((y.detach(), q.grad, k.grad, v.grad))
    for own, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_padding_that_sees_nothing_leaves_the_others_as_they_are() -> None:
    q, k, v = (torch.randn(1, n, 4, 4, requires_grad=True) for n in (6, 2, 2))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    expected, _ = attend(_Attention(), q, k, v, mask)
    mask[..., 0, :] = False
    y, _ = attend(_Attention(), q, k, v, mask)
    torch.testing.assert_close(y[:, 1:], expected[:, 1:])
    y.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_what_a_layer_asks_for_besides_is_left_to_the_kernel() -> None:
    q, k = torch.randn(1, 6, 3, 4), torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        attend(_Attention(), q, k, k, None, softcap=30.0)


@pytest.mark.parametrize("keys", [512, 513])
def test_longer_rows_keep_the_kernel(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def kernel(*given: object, **options: object) -> tuple[Tensor, None]:
        called.append(given)
        return torch.zeros(1, 3, 6, 4), None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", kernel)
    k = v = torch.randn(1, 2, keys, 4)
    attend(_Attention(), torch.randn(1, 6, 3, 4), k, v, torch.ones(1, 1, 3, keys, dtype=torch.bool))
    assert bool(called) is (keys == 513)


def test_weights_kept_in_bfloat16_give_the_bits_that_autocast_gives(tiny_llm: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(ids).logits
        keep_in(model, torch.bfloat16)
        after = model(ids).logits
    assert torch.equal(before, after)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    names = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert names == {"lm_head.weight", *(f"{name}.weight" for name in adapted(model))}
