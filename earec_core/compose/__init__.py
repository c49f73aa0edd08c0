"""Composition, Eq. 4: merge the modalities' adapters by weight into one."""

from __future__ import annotations

from earec_core.compose.adapters import LoraAdapter
from earec_core.compose.merge import ComposeReport, ModuleReport, SumRule, check_weights, compose
from earec_core.compose.methods import METHODS, Factors, Method, Part

__all__ = [
    "METHODS",
    "ComposeReport",
    "Factors",
    "LoraAdapter",
    "Method",
    "ModuleReport",
    "Part",
    "SumRule",
    "check_weights",
    "compose",
]
