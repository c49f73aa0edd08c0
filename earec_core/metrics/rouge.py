"""ROUGE-L of generated anchors, by the `rouge-score` package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def rouge_l(texts: Sequence[str], anchors: Sequence[str], *, stemmer: bool = True) -> Float[np.ndarray, " n"]:
    """ROUGE-L F1 of each text against its anchor, as `rouge_score.rouge_scorer` computes it."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    pairs = zip(anchors, texts, strict=True)
    return np.array(
        [scorer.score(anchor, text)["rougeL"].fmeasure for anchor, text in pairs], dtype=np.float64
    )
