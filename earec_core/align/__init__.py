"""Stage 1: align one modality to the anchor (Eq. 3)."""

from earec_core.align.job import open_job
from earec_core.align.planning import Plan, plan, shown
from earec_core.align.stage import Alignment, align

__all__ = ["Alignment", "Plan", "align", "open_job", "plan", "shown"]
