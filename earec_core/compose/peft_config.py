"""The composite's `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from earec_core.llm.peft_adapter import LoraAdapter

_SHARED = ("task_type", "auto_mapping", "base_model_name_or_path", "revision")
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def composite_config(
    adapters: Sequence[LoraAdapter], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """A configuration under which PEFT reads the composite's factors as they are meant.

    Args:
        adapters: those that took part.
        ranks: by module of the composite.
        scales: the factor in front of B @ A, by the same modules.
    """
    first = adapters[0]
    kept = {m: (shape[1], first.scales[m]) for m, shape in first.shapes.items()}
    if len(adapters) == 1 and kept == {m: (rank, scales[m]) for m, rank in ranks.items()}:
        return {**first.config, "init_lora_weights": True, "eva_config": None, "inference_mode": True}
    r = max(ranks.values())
    alphas = {module: scales[module] * rank for module, rank in ranks.items()}
    alpha = alphas[next(module for module in ranks if ranks[module] == r)]
    selection = {key: first.config.get(key) for key in _SELECTION}
    if not all(list(a.shapes) == list(ranks) and _selection(a) == _selection(first) for a in adapters):
        # Full names where the adapters chose different modules: a short name could match too many.
        selection = {**dict.fromkeys(_SELECTION), "target_modules": sorted(ranks)}
    if isinstance(selection["target_modules"], list):
        selection["target_modules"] = sorted(selection["target_modules"])
    return {
        "peft_type": "LORA",
        **{key: _common(adapters, key) for key in _SHARED},
        "inference_mode": True,
        "r": r,
        "lora_alpha": _integral(alpha),
        "use_rslora": False,
        "rank_pattern": {_exactly(module): rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {_exactly(m): _integral(value) for m, value in alphas.items() if value != alpha},
        "lora_dropout": _common(adapters, "lora_dropout") or 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(_common(adapters, "fan_in_fan_out")),
        "init_lora_weights": True,
        **selection,
    }


def _selection(adapter: LoraAdapter) -> list[Any]:
    """How the adapter chose its modules; order does not matter."""
    choices = [adapter.config.get(key) for key in _SELECTION]
    return [sorted(choice) if isinstance(choice, list) else choice for choice in choices]


def _common(adapters: Sequence[LoraAdapter], key: str) -> Any:
    """The value that all adapters which have one agree on; else None."""
    values = [value for adapter in adapters if (value := adapter.config.get(key)) is not None]
    return values[0] if values and all(value == values[0] for value in values) else None


def _exactly(module: str) -> str:
    """A PEFT pattern that matches this module alone (PEFT matches the end of a name otherwise)."""
    return "^" + re.escape(module)


def _integral(value: float) -> int | float:
    return int(value) if value.is_integer() else value
