"""How many positions a language model can read, and how far back its layers see."""

from __future__ import annotations

from typing import Any


def model_positions(config: Any) -> int | None:
    """The most positions that a model of this configuration reads; None where it sets no limit.

    Args:
        config: a transformers configuration; of a model of several parts, the text part counts. Where rotary
            positions are stretched, the limit is.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "max_seq_len"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0:
            return max(limit, _stretched(text, limit))
    return None


def model_window(config: Any) -> int | None:
    """The fewest positions that a layer of such a model sees; None where every layer sees all.

    Args:
        config: as above.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    windows = [getattr(text, name, None) for name in names]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def _stretched(config: Any, limit: int) -> int:
    """The limit that a scaling of rotary positions gives; 0 where there is none."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    if not isinstance(factor, int | float):
        return 0
    return int(factor * (scaling.get("original_max_position_embeddings") or limit))
