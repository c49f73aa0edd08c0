"""Tiny random causal LMs of every architecture that transformers can build small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 2048),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "embedding_size"), 32),
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "is_decoder": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""What configurations call their sizes; each takes those that it has."""

_LATENT: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_CHANGES: tuple[dict[str, Any], ...] = (
    {},
    _LATENT,
    {**_LATENT, "qk_rope_head_dim": 4, "qk_head_dim": 12, "head_dim": 4},
    {"num_hidden_layers": 4, "n_layer": 4},
    {"num_hidden_layers": 4, "head_dim": None},
    {"num_hidden_layers": 9},
    {"head_dim": None},
    {"rotary_dim": 4},
    {"head_dim": None, "num_key_value_heads": 4},
    {"mamba_n_heads": 8, "mamba_d_head": 8, "head_dim": 8, "num_heads": 8, "num_hidden_layers": 4},
    {"num_experts_per_tok": 1},
    {"num_hidden_layers": None, "moe_intermediate_size": None},
)
"""Tried in this order where a configuration does not take the sizes as they are; None: its own value."""

_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_KIMI = {**_LATENT, **_MIXED, "linear_head_dim": 8, "linear_num_heads": 4, "num_experts_per_token": 2}
_PER_LAYER = {"vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": {
        **_LATENT,
        "qk_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dots1": {"n_shared_experts": 1, "layer_types": ["full_attention"] * 2},
    "gemma3n_text": {
        **_PER_LAYER,
        "intermediate_size": [64, 64],
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 4,
    },
    "gemma4_text": {**_PER_LAYER, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "kimi_linear": {**_KIMI, "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        **_LATENT,
        "num_layers": 1,
        "num_hidden_layers": 2,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "qk_head_dim": 16,
        "head_dim": 8,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "attention_head_size": 8},
    "xlm": {"n_words": 264, "causal": True},
    "xmod": {"default_language": "en_XX"},
}
"""What a single family needs beside."""

_LARGEST = 40_000_000
"""Parameters."""


def families() -> list[str]:
    """All causal architectures of the installed transformers, by `model_type`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return sorted(NAMES)


def tiny_model(family: str, vocabulary: int) -> Any:
    """A random causal LM of a family that reads token ids, or None where none of these sizes gives one.

    Args:
        family: as `families` names it.
        vocabulary: tokens.
    """
    import torch

    for config in _configurations(family, vocabulary):
        try:
            if (model := _built(config)) is None:
                continue
            with torch.no_grad():
                logits = model(torch.arange(2, 10)[None]).logits
        except Exception:  # noqa: BLE001, S112 - configurations of sizes that do not go together fail in any way
            continue
        if logits.shape == (1, 8, vocabulary) and logits.isfinite().all():
            return model
    return None


def _configurations(family: str, vocabulary: int) -> Iterator[Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        cls: Any = CONFIG_MAPPING[family]
        default = cls()
    except Exception:  # noqa: BLE001 - a configuration without defaults
        return
    for change in _CHANGES:
        sizes = {"vocab_size": vocabulary, **_SIZES, **change}
        own = {
            name: value
            for name, value in sizes.items()
            if value is not None
            and name in vars(default)
            and not isinstance(vars(default)[name], list | dict)
        }
        try:
            yield cls(**own | _OWN.get(family, {}))
        except Exception:  # noqa: BLE001, S112 - the next change
            continue


def _built(config: Any) -> Any:
    """A model with weights large enough that every part of it shows in its logits; None: too large to build."""
    import torch
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        if sum(p.numel() for p in make(config).parameters()) > _LARGEST:
            return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model
