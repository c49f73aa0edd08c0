"""The words that a text shares with its anchor: the longest common subsequence, which ROUGE-L counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

_PIECES = re.compile(r"[^\W_]+|[\W_]+")


def common(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Positions in `ours` of one longest common subsequence with `theirs`."""
    table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i in range(len(ours) - 1, -1, -1):
        for j in range(len(theirs) - 1, -1, -1):
            same = ours[i] == theirs[j]
            table[i][j] = table[i + 1][j + 1] + 1 if same else max(table[i + 1][j], table[i][j + 1])
    positions, i, j = [], 0, 0
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            positions.append(i)
            i, j = i + 1, j + 1
        elif table[i + 1][j] >= table[i][j + 1]:
            i += 1
        else:
            j += 1
    return positions


def highlight(text: str, anchor: str) -> Markup:
    """`text` as markup, the words that it shares with the anchor in `<mark>`, neighbours in one.

    Case does not matter. Words are compared as they are: ROUGE-L with a stemmer may count a few more.
    """
    pieces = _PIECES.findall(text)
    words = [n for n, piece in enumerate(pieces) if _is_word(piece)]
    theirs = [piece.casefold() for piece in _PIECES.findall(anchor) if _is_word(piece)]
    marked = {words[i] for i in common([pieces[n].casefold() for n in words], theirs)}
    # A blank between two marked words belongs to the mark, so that a phrase reads as one.
    marked |= {n for n, p in enumerate(pieces) if p.isspace() and {n - 1, n + 1} <= marked}
    runs = groupby(range(len(pieces)), marked.__contains__)
    parts = ((shared, "".join(pieces[n] for n in run)) for shared, run in runs)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(part) if shared else part for shared, part in parts
    )


def _is_word(piece: str) -> bool:
    return piece[0] != "_" and re.match(r"\w", piece) is not None
