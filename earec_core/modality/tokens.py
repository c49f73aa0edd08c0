"""Text to token ids, where text that comes from a catalog never becomes a control token."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

_MARK = re.compile(r"<[^<>\s]+>|\[[A-Z][A-Z_/ ]*\]")
"""What is a control token though the tokenizer does not call it special."""

Ids = tuple[int, ...]
Span = tuple[str, bool]
"""A text, and whether it is plain: then what spells a control token in it is read as the letters it is."""


class SpanTokenizer:
    """Tokenizes texts that are plain in parts; ordinary text gets the tokens that it always gets.

    Args:
        tokenizer: the LLM's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marks = {i: token.content for i, token in added.items() if _MARK.fullmatch(token.content)}
        controls = (
            {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids) | set(marks)
        )
        longest = sorted(marks.values(), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        # Unknown letters are no control token, unless their token is one as well (GPT-2).
        named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._controls = controls - ({tokenizer.unk_token_id} - named)
        self._encoded: dict[tuple[Span, ...], Ids] = {}

    def __call__(self, *spans: Span) -> Ids:
        """Token ids of the spans as one text; they are kept for the next time."""
        if spans not in self._encoded:
            self._encoded[spans] = self.encode(*spans)
        return self._encoded[spans]

    def encode(self, *spans: Span) -> Ids:
        """Token ids of the spans as one text."""
        whole = self._ids("".join(text for text, _ in spans))
        given = [i for text, plain in spans if not plain for i in self._ids(text) if i in self._controls]
        if [i for i in whole if i in self._controls] == given:
            return whole
        return tuple(i for text, plain in spans for i in (self._plain(text) if plain else self._ids(text)))

    def _ids(self, text: str, **options: bool) -> Ids:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return tuple(ids)

    def _plain(self, text: str) -> Ids:
        # Tokens that were added without being called special (`<tool_call>`) are read piece by piece.
        cuts = [0, *(match.start() + 1 for match in self._marks.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in pairwise(cuts)]
        ids = [i for part in parts for i in self._ids(part, split_special_tokens=True)]
        # Some vocabularies hold a control token's spelling as a word too; such a word is left out.
        return tuple(i for i in ids if i not in self._controls)
