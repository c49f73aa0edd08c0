"""ROUGE-L of generated anchors, by the `rouge-score` package, with a bootstrap confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval.

    Attributes:
        mean: over `n` values.
        low, high: percentile bootstrap over the values.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    n: int


def rouge_l(texts: Sequence[str], anchors: Sequence[str], *, stemmer: bool = True) -> Float[np.ndarray, " n"]:
    """ROUGE-L F1 of each text against its anchor, as `rouge_score.rouge_scorer` computes it."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    pairs = zip(anchors, texts, strict=True)
    return np.array(
        [scorer.score(anchor, text)["rougeL"].fmeasure for anchor, text in pairs], dtype=np.float64
    )


def interval(values: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean and 95% percentile-bootstrap interval; NaN for no values."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(values))
