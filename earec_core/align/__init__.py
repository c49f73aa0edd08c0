"""Stage 1: align one modality to the anchor (Eq. 3)."""

from earec_core.align.planning import Plan, plan, samples_shown
from earec_core.align.stage import Alignment, align

__all__ = ["Alignment", "Plan", "align", "plan", "samples_shown"]
