"""What an LLM's architecture can do, tried on a few tokens when it is loaded.

Everything that stages do with an LLM rests on this: word embeddings in place of token ids give the same logits, no
position reads a later one, rows padded on the right read as they would alone. Where an architecture does otherwise,
nothing fails: the numbers are only wrong. So what transformers makes of the ids is compared with what
`Backbone.hidden` and `Backbone.logits` make of their embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.errors import UsageError, one_line
from earec_core.llm import attention
from earec_core.llm.backbone import Abilities, Backbone
from earec_core.llm.prompts import Prompt

_TEXT = "A short text to try."
_PREFIX, _SHORT, _LONG = 3, 5, 8
"""Tokens of the common prefix and of two rows, prefix included."""
_NEW = 3
"""Tokens to continue them by."""
_EXACT, _ROUGH = 1e-4, 0.1
"""How far logits may be apart, relative to their spread: in float32, where rounding makes 1e-6 of it, and below."""
_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)


@torch.no_grad()
def tried(backbone: Backbone) -> Abilities:
    """What the architecture of a backbone can do.

    Raises:
        UsageError: it cannot be used at all; the sentence says why.
    """
    if not backbone.linear_modules():
        raise _refusal(backbone, "has no linear layers that LoRA could adapt")
    known = [i for i in backbone.tokenizer(_TEXT)["input_ids"] if i < len(backbone.word_embedding.weight)]
    ids = tuple((known or [0]) * _LONG)[:_LONG]
    try:
        plain = _plain(backbone, ids)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _refusal(backbone, f"does not run on text alone ({one_line(error)})") from error
    fast = _attend_faster(backbone, ids, plain)
    expected = torch.cat([plain[_PREFIX:], plain[_PREFIX:_SHORT]])
    shares_prefix = _agree(backbone, ids, expected, share_prefix=True)
    if fast and not shares_prefix:
        attention.use_kernel(backbone.model)
        shares_prefix = _agree(backbone, ids, expected, share_prefix=True)
    before = _held(backbone.model)
    if not _agree(backbone, ids, expected, share_prefix=False):
        raise _refusal(backbone, _reason(backbone, ids, plain))
    side_by_side = not _rescaled(backbone.model) and _same(before, _held(backbone.model))
    for padding in ("behind", "before"):
        backbone.abilities = Abilities(shares_prefix, padding, side_by_side)
        if _generates(backbone, ids):
            return backbone.abilities
    return Abilities(shares_prefix, None, side_by_side)


def _plain(backbone: Backbone, ids: Sequence[int]) -> Float[Tensor, "s v"]:
    """The logits that the LLM itself gives for token ids."""
    with backbone.autocast():
        logits: Tensor = backbone.model(torch.tensor([list(ids)], device=backbone.device)).logits
    return logits[0].float()


def _attend_faster(backbone: Backbone, ids: Sequence[int], plain: Tensor) -> bool:
    """On a processor, attention for short rows, where it gives the same logits; whether it is used."""
    if backbone.device.type != "cpu" or not attention.use_short(backbone.model):
        return False
    try:
        same = _close(backbone, _plain(backbone, ids), plain)
    except _FAILURES:
        same = False
    if not same:
        attention.use_kernel(backbone.model)
    return same


def _held(model: nn.Module) -> list[tuple[Any, int]]:
    """What the modules hold, and how often each tensor of it was written to."""
    values = [v for module in model.modules() for v in (*vars(module).values(), *module._buffers.values())]
    counted = (isinstance(value, Tensor) and not value.is_inference() for value in values)
    return [(value, value._version if counts else 0) for value, counts in zip(values, counted, strict=True)]


def _same(before: Sequence[tuple[Any, int]], after: Sequence[tuple[Any, int]]) -> bool:
    """Whether the modules hold what they held."""
    return len(before) == len(after) and all(
        old is new and was == now for (old, was), (new, now) in zip(before, after, strict=True)
    )


def _rescaled(model: nn.Module) -> bool:
    """Whether rotary positions follow from the longest row so far (transformers' `dynamic` scaling)."""
    return any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules())


def _rows(ids: tuple[int, ...]) -> list[Prompt]:
    return [Prompt(i, (ids[:_PREFIX], ids[_PREFIX:end])) for i, end in enumerate((_LONG, _SHORT))]


def _agree(backbone: Backbone, ids: tuple[int, ...], expected: Tensor, *, share_prefix: bool) -> bool:
    try:
        hidden = backbone.hidden(backbone.splice(_rows(ids), {}), share_prefix=share_prefix)
        own = torch.cat([hidden[0], hidden[1, : _SHORT - _PREFIX]])
        return own.shape[-1] == backbone.d_llm and _close(backbone, backbone.logits(own), expected)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES:
        return False


def _generates(backbone: Backbone, ids: tuple[int, ...]) -> bool:
    """Whether going on from rows that were read sees the same logits as reading them again."""
    starts, written = (ids, ids[:_SHORT]), [list[int]() for _ in range(2)]
    try:
        for rows, logits in backbone.continuing(backbone.splice(_rows(ids), {}), _NEW):
            for i, own in zip(rows, logits, strict=True):
                expected = _plain(backbone, (*starts[i], *written[i]))[-1:]
                if not _close(backbone, own[None], expected):
                    return False
                written[i].append(int(own.argmax()))
        return True
    except torch.OutOfMemoryError:
        raise
    except _FAILURES:
        return False


def _reason(backbone: Backbone, ids: tuple[int, ...], plain: Tensor) -> str:
    """Why neither way gives the model's own logits."""
    if not plain.isfinite().all():
        return "gives logits that are NaN or infinite"
    try:
        embeddings = backbone.embed(ids).to(backbone.word_embedding.weight.dtype)[None]
        with backbone.autocast():
            read = backbone.model(inputs_embeds=embeddings)
        cut = _plain(backbone, ids[:_SHORT])
        width = backbone.hidden(backbone.splice([Prompt(0, (ids,))], {})).shape[-1]
    except _FAILURES as error:
        return f"does not read embeddings in place of tokens ({one_line(error)})"
    if width != backbone.d_llm:
        return f"has embeddings of width {backbone.d_llm} and hidden states of width {width}"
    if not _close(backbone, cut, plain[:_SHORT]):
        return "reads the tokens that follow, so it is no causal language model"
    if not _close(backbone, read.logits[0].float(), plain):
        return "gives other logits for embeddings than for the tokens that they belong to"
    return "gives other logits for a row in a batch than for the row alone"


def _close(backbone: Backbone, own: Float[Tensor, "n v"], expected: Float[Tensor, "n v"]) -> bool:
    """Whether logits agree, up to what a softmax does not see."""
    spread = expected - expected.mean(-1, keepdim=True)
    difference = own - own.mean(-1, keepdim=True) - spread
    return bool(difference.norm() <= _room(backbone) * spread.norm())


def _room(backbone: Backbone) -> float:
    return _EXACT if backbone.dtype == torch.float32 else _ROUGH


def _refusal(backbone: Backbone, reason: str) -> UsageError:
    family = backbone.model.config.model_type
    return UsageError(
        f"The backbone {backbone.info.id} is of the architecture {family}, which {reason}.",
        "Choose one that docs/compatibility.md lists as working.",
    )
