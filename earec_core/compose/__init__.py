"""Composition, Eq. 4: merge the modalities' adapters by weight into one."""

from __future__ import annotations

from earec_core.compose.factors import Factors, Part
from earec_core.compose.measure import ComposeReport, ModuleReport
from earec_core.compose.merge import compose
from earec_core.compose.methods import METHODS, Method, get_method, method_names
from earec_core.compose.recipe import Recipe, SumRule
from earec_core.llm.peft_adapter import LoraAdapter

__all__ = [
    "METHODS",
    "ComposeReport",
    "Factors",
    "LoraAdapter",
    "Method",
    "ModuleReport",
    "Part",
    "Recipe",
    "SumRule",
    "compose",
    "get_method",
    "method_names",
]
