"""Attention for short rows on a processor, where torch's fused kernel costs more than its arithmetic.

Its backward pass takes a sixth of a training step for a hundredth of the multiplications. Plain products and a
softmax give the same numbers, up to rounding, and need memory for the scores; so longer rows keep torch's kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NAME = "earec_short"
"""What the LLM's configuration calls it."""
_KERNEL = "sdpa"
_SHORT = 512
"""Keys up to which the plain products are taken; the kernel is ahead from about a thousand on."""


_MORE = ("position_bias", "cache", "softcap", "s_aux")
"""What a layer may ask for besides; the kernel's function does it, or refuses."""


def use_short(model: Any) -> bool:
    """Let a causal LM that would attend by torch's kernel (`sdpa`) attend this way; whether it does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) != _KERNEL:
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def use_kernel(model: Any) -> None:
    """Undo `use_short`."""
    model.set_attn_implementation(_KERNEL)


def attend(
    module: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b k t d"],
    value: Float[Tensor, "b k t d_v"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "b s h d_v"], None]:
    """What transformers' `sdpa_attention_forward` gives; k heads of keys serve h heads of queries."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = query.device.type == "cpu" and key.shape[2] <= _SHORT and not dropout
    if not plain or any(options.get(name) is not None for name in _MORE):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    b, h, s, d = query.shape
    k, t = key.shape[1:3]
    grouped = query.reshape(b, k, (h // k) * s, d) * (d**-0.5 if scaling is None else scaling)
    scores = (grouped @ key.mT).view(b, h, s, t)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and s > 1:
        attention_mask = torch.ones(s, t, dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None:
        mask = attention_mask[..., :t]
        # Not -inf: a position of padding may see nothing, and its NaN would spread to the others.
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill_(~mask, hidden) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    seen = weights.view(b, k, (h // k) * s, t) @ value
    return seen.view(b, h, s, -1).transpose(1, 2).contiguous(), None
