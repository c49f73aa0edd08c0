"""A causal LM out of a model folder: its language part alone, plain weights, or one sentence that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from earec_core.errors import UsageError
from earec_core.modality.weights import check_folder, load_complete, pretrained

_ADVICE = "Give a directory or hub id that transformers' AutoModelForCausalLM loads."
_UNPACKED = ("fp8", "mxfp4")
"""Quantised forms that transformers turns into plain weights while it loads them, on any device."""


@dataclass(frozen=True)
class LanguageModel:
    """What a model folder holds, loaded on the CPU.

    Attributes:
        model: the transformers causal LM.
        tokenizer: its tokenizer; every id of it has an embedding.
        left: the parts of the checkpoint that are left alone, such as a vision tower.
    """

    model: Any
    tokenizer: Any
    left: tuple[str, ...]


def load(path: Path, dtype: torch.dtype) -> LanguageModel:
    """Load a folder's tokenizer and causal LM; of a multimodal model its language part.

    Args:
        path: the folder.
        dtype: of the weights.

    Raises:
        UsageError: it is none, is not whole, or is quantised; says what to do.
    """
    from transformers import AutoConfig, AutoTokenizer

    subject = f"The backbone {path}"
    check_folder(path, subject)
    config = pretrained(AutoConfig, str(path), subject, _ADVICE)
    _unpack(config, subject)
    tokenizer = pretrained(AutoTokenizer, str(path), f"The tokenizer of {path}", "Get its files again.")
    model, left = _causal(path, config, dtype, subject)
    rows = model.get_input_embeddings().num_embeddings
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= rows:
        raise UsageError(
            f"The tokenizer of {path} has ids up to {last}, but the model has embeddings for {rows} alone.",
            "Give the model its own tokenizer, or resize_token_embeddings(len(tokenizer)) and save_pretrained it.",
        )
    return LanguageModel(model, tokenizer, left)


def _unpack(config: Any, subject: str) -> None:
    """Ask for plain weights where transformers gives them, and refuse the other quantised forms.

    LoRA is merged into the weights and comes off again bit for bit, which packed weights do not allow.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in _UNPACKED:
        raise UsageError(
            f"{subject} has quantised weights ({method or 'no known form'}); adapters are merged into plain ones.",
            "Give the model that was quantised, or load it, dequantize() and save_pretrained it.",
        )
    config.quantization_config = {**settings, "dequantize": True}


def _causal(path: Path, config: Any, dtype: torch.dtype, subject: str) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoModelForCausalLM

    text = config.get_text_config(decoder=True)
    auto: Any = AutoModelForCausalLM
    if text is not config:
        auto = _multimodal(config) or auto
    if type(config) not in auto._model_mapping:
        raise UsageError(
            f"{subject} is of the type {config.model_type}, which transformers loads as no causal language model.",
            _ADVICE,
        )
    if text is not config and type(text) not in AutoModelForCausalLM._model_mapping:
        raise UsageError(
            f"{subject} is a multimodal {config.model_type}, whose language part transformers does not run alone.",
            _ADVICE,
        )
    loaded = load_complete(auto, str(path), subject, _ADVICE, dtype=dtype, config=config)
    if text is config:
        return loaded.model, loaded.left
    language = _language_part(loaded.model, subject)
    whole = loaded.model.base_model
    towers = [name for name, part in whole.named_children() if part is not language.base_model]
    return language, (*loaded.left, *towers)


def _multimodal(config: Any) -> Any:
    """The class of transformers that loads a language model together with what it sees or hears; None if none."""
    import transformers

    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto
    return None


def _language_part(whole: Any, subject: str) -> Any:
    """The causal LM inside a multimodal model, of the same tensors."""
    from transformers import AutoModelForCausalLM

    decoder = whole.get_decoder()
    with torch.device("meta"):
        causal: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            whole.config.get_text_config(decoder=True)
        )
    if type(decoder) is type(causal):
        return decoder
    if type(decoder) is type(causal.base_model):
        setattr(causal, causal.base_model_prefix, decoder)
        causal.set_output_embeddings(whole.get_output_embeddings())
        causal.config, causal.generation_config = decoder.config, whole.generation_config
        if not any(tensor.is_meta for tensor in (*causal.parameters(), *causal.buffers())):
            return causal
    raise UsageError(
        f"{subject} is a {whole.config.model_type} model, whose language part does not work alone.",
        "Give a language model, or save that part with save_pretrained.",
    )
