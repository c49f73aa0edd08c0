"""What two models say of the same items, scored against the items' anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from earec_core.catalog import Catalog
from earec_core.compare.rows import Row, contrast, corrected
from earec_core.explain import ALL, Explanation, Text

_CARDS = 6


@dataclass(frozen=True)
class Said:
    """What both say of an item, from everything that they read of it.

    Attributes:
        item: its id.
        anchor: what A should say; B's, where the two were aligned to the same.
        a, b: the texts.
        rouge_a, rouge_b: ROUGE-L of each against its model's anchor.
    """

    item: str
    anchor: str
    a: str
    b: str
    rouge_a: float
    rouge_b: float


def scores(a: Explanation, b: Explanation) -> list[Row]:
    """ROUGE-L of both over the items that both say something of, from each source that both have.

    `all` is everything that a model reads, of a model of one modality that one.
    """
    mine, theirs = _by_source(a), _by_source(b)
    names = [source for source in mine if source in theirs]
    if set(a.inputs) == set(b.inputs) and len(a.inputs) == 1:
        names.remove(ALL)
    rows = []
    for source in names:
        both = [row for row in mine[source] if row in theirs[source]]
        if both:
            values = [np.array([said[source][row].rouge_l for row in both]) for said in (mine, theirs)]
            rows.append(contrast("texts", f"ROUGE-L from {source}", *values))
    return corrected(rows)


def cards(a: Explanation, b: Explanation, catalog: Catalog) -> list[Said]:
    """The items of which B's text is closer to the anchor by most, then those where A's is, three each at most."""
    mine, theirs = _by_source(a)[ALL], _by_source(b)[ALL]
    gain = {row: theirs[row].rouge_l - mine[row].rouge_l for row in mine if row in theirs}
    ranked = sorted(gain, key=lambda row: (-gain[row], row))
    chosen = list(dict.fromkeys([*ranked[: _CARDS // 2], *ranked[::-1][: _CARDS // 2]]))
    items = catalog.items_at(chosen)
    return [
        Said(
            item.id, a.anchors[row], mine[row].text, theirs[row].text, mine[row].rouge_l, theirs[row].rouge_l
        )
        for item, row in zip(items, chosen, strict=True)
    ]


def _by_source(explanation: Explanation) -> Mapping[str, Mapping[int, Text]]:
    """The aligned model's texts by source and row."""
    found: dict[str, dict[int, Text]] = {source: {} for source in (*explanation.inputs, ALL)}
    for text in explanation.texts:
        found[text.source][text.row] = text
    if len(explanation.inputs) == 1:
        (only,) = explanation.inputs
        found[ALL] = found[only]
    return found
