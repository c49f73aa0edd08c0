"""ROUGE-L of generated anchors, by the `rouge-score` package."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float


def new_words(text: str, words: Collection[str], *, stemmer: bool = True) -> str:
    """A text's words as ROUGE counts them, without some that were read: what was not copied.

    Args:
        words: as `counted` gives them.
    """
    return " ".join(word for word in counted(text, stemmer=stemmer) if word not in words)


def counted(text: str, *, stemmer: bool = True) -> list[str]:
    """The words of a text as ROUGE compares them: lower case, letters and digits, stemmed."""
    from rouge_score.tokenizers import DefaultTokenizer

    words: list[str] = DefaultTokenizer(stemmer).tokenize(text)
    return words


def rouge_l(texts: Sequence[str], anchors: Sequence[str], *, stemmer: bool = True) -> Float[np.ndarray, " n"]:
    """ROUGE-L F1 of each text against its anchor, as `rouge_score.rouge_scorer` computes it."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    pairs = zip(anchors, texts, strict=True)
    return np.array(
        [scorer.score(anchor, text)["rougeL"].fmeasure for anchor, text in pairs], dtype=np.float64
    )
