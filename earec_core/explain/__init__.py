"""What the model says an item is, from each modality alone and from all together."""

from earec_core.explain.stage import ALL, VARIANTS, Explanation, Text, explain
from earec_core.explain.texts import inputs_shown, text_rows, write_texts

__all__ = ["ALL", "VARIANTS", "Explanation", "Text", "explain", "inputs_shown", "text_rows", "write_texts"]
