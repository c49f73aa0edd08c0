"""Scores of generated anchors: by source, variant and part of the anchor, and whether they depend on the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from earec_core.metrics.statistics import Interval, interval

ALL = "all"
COPIED = "copied"
VARIANTS = ("aligned", "shuffled", "unaligned", COPIED)
"""The model; the model reading another item's input; the backbone without adapter, projectors untrained; no model:
the words of the item's own input as they are, where it is words."""

WHOLE, NEW = "anchor", "new words"
"""Parts of an anchor: all of it; its words that the LLM did not read."""


@dataclass(frozen=True)
class Text:
    """One generated anchor.

    Attributes:
        row: the item's row.
        source: the modality it was generated from, or `all`.
        variant: one of `VARIANTS`.
        text: what the model said.
        rouge_l: ROUGE-L F1 against the item's anchor.
        parts: ROUGE-L against parts of the anchor, by the part's name: a field, or `NEW`.
    """

    row: int
    source: str
    variant: str
    text: str
    rouge_l: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def score(self, part: str) -> float | None:
        """ROUGE-L against a part of the anchor; None where the anchor has no such part."""
        return self.rouge_l if part == WHOLE else self.parts.get(part)


@dataclass(frozen=True)
class Scores:
    """Scores of a part of the anchor from one source.

    Attributes:
        source: the modality, or `all`.
        part: `WHOLE`, `NEW` or a field.
        variants: mean ROUGE-L with its 95% interval, by variant.
        difference: aligned less shuffled over the items that have both; 0 where the input makes no difference.
    """

    source: str
    part: str
    variants: Mapping[str, Interval]
    difference: Interval | None

    def row(self) -> dict[str, Any]:
        """The scores as a table shows them."""
        row: dict[str, Any] = {}
        for name, score in {**self.variants, "difference": self.difference}.items():
            if score is not None:
                if name in VARIANTS:
                    row["items"] = max(row.get("items", 0), score.n)
                row |= {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}
        return row


def scored(texts: Sequence[Text], sources: Sequence[str], resamples: int) -> tuple[Scores, ...]:
    """Scores of all sources and parts that texts were generated for.

    Args:
        resamples: of the bootstrap.
    """
    found = []
    for source in sources:
        mine = [text for text in texts if text.source == source]
        for part in dict.fromkeys((WHOLE, *(part for text in mine for part in text.parts))):
            by_row = {
                variant: {
                    t.row: score
                    for t in mine
                    if t.variant == variant and (score := t.score(part)) is not None
                }
                for variant in VARIANTS
            }
            variants = {
                variant: interval(np.array(list(rows.values())), resamples=resamples)
                for variant, rows in by_row.items()
                if rows
            }
            if variants:
                found.append(Scores(source, part, variants, _difference(by_row, resamples)))
    return tuple(found)


def _difference(by_row: Mapping[str, Mapping[int, float]], resamples: int) -> Interval | None:
    aligned, shuffled = by_row["aligned"], by_row["shuffled"]
    both = [row for row in aligned if row in shuffled]
    if not both:
        return None
    return interval(np.array([aligned[row] - shuffled[row] for row in both]), resamples=resamples)
