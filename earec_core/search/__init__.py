"""Weights found by evidence: adapters side by side on one backbone, lambda searched on validation data."""

from earec_core.search.stage import OBJECTIVES, STRATEGIES, Evaluation, Found, search

__all__ = ["OBJECTIVES", "STRATEGIES", "Evaluation", "Found", "search"]
