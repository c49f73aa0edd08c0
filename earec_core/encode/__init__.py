"""Stage 2: every item of a catalog as a vector (Eq. 5)."""

from earec_core.encode.batches import item_vectors
from earec_core.encode.planning import EncodingPlan, plan, plan_words
from earec_core.encode.prompts import WrittenPrompts, write_prompts
from earec_core.encode.stage import encode
from earec_core.encode.words import encode_words

__all__ = [
    "EncodingPlan",
    "WrittenPrompts",
    "encode",
    "encode_words",
    "item_vectors",
    "plan",
    "plan_words",
    "write_prompts",
]
