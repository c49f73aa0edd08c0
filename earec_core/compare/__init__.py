"""Two models on one catalog beside each other: what they are, their vectors, their texts, what is recommended."""

from earec_core.compare.rows import Row
from earec_core.compare.stage import Comparison, compare
from earec_core.compare.texts import Said

__all__ = ["Comparison", "Row", "Said", "compare"]
