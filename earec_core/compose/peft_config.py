"""The composite's `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from earec_core.llm.peft_adapter import LoraAdapter

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
    unchanged = all(
        adapter.modules == tuple(ranks)
        and all(ranks[m] == adapter.shapes[m][1] and scales[m] == adapter.scale(m) for m in adapter.modules)
        for adapter in adapters
    )
    if len(adapters) == 1 and unchanged:
        return {
            **adapters[0].config,
            "init_lora_weights": True,
            "eva_config": None,
            "inference_mode": True,
        }
    r = max(ranks.values())
    alphas = {module: scales[module] * rank for module, rank in ranks.items()}
    alpha = alphas[next(module for module in ranks if ranks[module] == r)]
    selections = [{key: adapter.config.get(key) for key in _SELECTION} for adapter in adapters]
    same = all(
        _canonical(selection) == _canonical(selections[0]) and adapter.modules == tuple(ranks)
        for adapter, selection in zip(adapters, selections, strict=True)
    )
    # Full names where the adapters chose different modules: a short name could match too many.
    selection = selections[0] if same else {**dict.fromkeys(_SELECTION), "target_modules": sorted(ranks)}
    if isinstance(selection["target_modules"], list):
        selection["target_modules"] = sorted(selection["target_modules"])
    return {
        "peft_type": "LORA",
        "task_type": _common(adapters, "task_type"),
        "auto_mapping": _common(adapters, "auto_mapping"),
        "base_model_name_or_path": _common(adapters, "base_model_name_or_path"),
        "revision": _common(adapters, "revision"),
        "inference_mode": True,
        "r": r,
        "lora_alpha": _integral(alpha),
        "use_rslora": False,
        "rank_pattern": {_exactly(module): rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {
            _exactly(name): _integral(value) for name, value in alphas.items() if value != alpha
        },
        "lora_dropout": _common(adapters, "lora_dropout") or 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(_common(adapters, "fan_in_fan_out")),
        "init_lora_weights": True,
        **selection,
    }


def _canonical(selection: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if isinstance(value, list) else value for key, value in selection.items()}


def _common(adapters: Sequence[LoraAdapter], key: str) -> Any:
    """The value that all adapters which have one agree on; else None."""
    values = [value for adapter in adapters if (value := adapter.config.get(key)) is not None]
    return values[0] if values and all(value == values[0] for value in values) else None


def _exactly(module: str) -> str:
    """A PEFT pattern that matches this module alone (PEFT matches the end of a name otherwise)."""
    return "^" + re.escape(module)


def _integral(value: float) -> int | float:
    return int(value) if value.is_integer() else value
