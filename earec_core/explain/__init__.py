"""What the model says an item is, from each modality alone and from all together."""

from earec_core.explain.saying import Said, say
from earec_core.explain.scores import ALL, VARIANTS, WHOLE, Text
from earec_core.explain.stage import Explanation, explain
from earec_core.explain.texts import inputs_shown, text_rows, write_texts

__all__ = [
    "ALL",
    "VARIANTS",
    "WHOLE",
    "Explanation",
    "Said",
    "Text",
    "explain",
    "inputs_shown",
    "say",
    "text_rows",
    "write_texts",
]
