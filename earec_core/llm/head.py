"""From hidden states to logits by the causal LM's own code, whatever the architecture does on the way.

Some cap the logits, scale them, shift them, or transform the hidden states before the output layer. All of that
stands in the `forward` of the causal LM, behind the call of its base model; so that `forward` is run with the
hidden states, already computed, in place of the base model.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def logits(model: Any, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
    """Next-token logits of positions.

    Args:
        model: a transformers causal LM.
        hidden: what its base model gave as `last_hidden_state` at those positions, in the output layer's dtype.
    """
    result: Tensor = _answering(model, hidden[None])(inputs_embeds=hidden[None], use_cache=False).logits[0]
    return result


def base_name(model: Any) -> str:
    """The attribute of a causal LM that holds its base model: all but what makes logits of hidden states."""
    prefix: str = model.base_model_prefix
    if isinstance(getattr(model, prefix, None), nn.Module):
        return prefix
    # Some name none that they have (Llama 4's text model): then it is the part with the word embeddings.
    words = model.get_input_embeddings()
    name: str = next(name for name, part in model.named_children() if words in set(part.modules()))
    return name


def _answering(model: Any, hidden: Float[Tensor, "1 n d"]) -> Any:
    """The causal LM with a base model that answers whatever it is asked with these hidden states.

    A shallow copy: other threads may be asking the model itself.
    """
    name = base_name(model)
    answering = copy(model)
    answering._modules = {**model._modules, name: _Answer(getattr(model, name), hidden)}
    return answering


class _Output(tuple[Tensor]):
    """A base model's output that is hidden states alone; whatever else it is asked for is None."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class _Answer(nn.Module):
    """Stands in for a base model; some causal LMs call its decoder, and some read its weights."""

    def __init__(self, base: nn.Module, hidden: Float[Tensor, "1 n d"]) -> None:
        super().__init__()
        self.__dict__["base"] = base  # so that it is no submodule
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> _Output:
        return _Output((self.hidden,))

    def __getattr__(self, name: str) -> Any:
        return self if name == "decoder" else getattr(self.__dict__["base"], name)
