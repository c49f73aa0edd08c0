"""For tests of the core and of plugins: a tiny random LLM with a real tokenizer, and the conformance kit.

Importing this package imports neither torch nor pytest.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earec_core.testing.conformance import ModalityConformance

__all__ = ["ModalityConformance", "tiny_backbone"]

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_backbone(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """Write a random Llama (about 50 thousand parameters) with a byte-level tokenizer, as a model directory.

    Args:
        folder: where to; made if it is not there.
        seed: of the weights.
        hidden: width, a multiple of 4.
        layers: blocks.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    fast = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                tie_word_embeddings=True,
            )
        )
    # transformers looks for DeepSpeed here, which logs to stdout where it is first imported.
    with redirect_stdout(sys.stderr):
        model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of 258 tokens with a chat template, as transformers has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    fast.chat_template = _TEMPLATE
    return fast


def __getattr__(name: str) -> Any:
    if name == "ModalityConformance":
        from earec_core.testing.conformance import ModalityConformance

        return ModalityConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
