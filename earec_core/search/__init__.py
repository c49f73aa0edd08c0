"""Weights found by evidence: adapters side by side on one LLM, lambda searched on validation data."""

from earec_core.search.stage import OBJECTIVES, Evaluation, SearchResult, search
from earec_core.search.strategies import STRATEGIES

__all__ = ["OBJECTIVES", "STRATEGIES", "Evaluation", "SearchResult", "search"]
