"""Prompts and responses (Figure 3): token pieces and slots, never a string that is tokenized again.

A prompt is a sequence of pieces: token ids of text, or a `Slot` whose embeddings are spliced in later. Every
piece of text is tokenized on its own, so where the response starts is known, not guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from earec_core.artifacts import ChatRecord
from earec_core.config import PromptConfig
from earec_core.errors import UsageError
from earec_core.llm.chat import chat_text
from earec_core.modality.tokens import Ids, Span, SpanTokenizer
from earec_core.types import Item, Slot

Piece = Ids | Slot

_DOMAIN = "{domain}"
_MARKS = re.compile(r"(\{item\}|\{related\})")


@dataclass(frozen=True)
class Prompt:
    """A prompt for one item.

    Attributes:
        item: the item's row.
        pieces: token ids and slots in reading order; the first piece is the text that all prompts share.
        dropped: relation slots that did not fit.
        cut: positions that the item's own slots lost at their ends to fit.
        too_long: whether the item's slots were left out, since it did not fit with them.
    """

    item: int
    pieces: tuple[Piece, ...]
    dropped: int = 0
    cut: int = 0
    too_long: bool = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Slot))

    def length(self, positions: Callable[[Slot], int]) -> int:
        """Positions of the whole prompt, slots included."""
        return sum(positions(p) if isinstance(p, Slot) else len(p) for p in self.pieces)


class TooLongError(UsageError):
    """One item's prompt and response do not fit, whatever is dropped and shortened."""


class PromptBuilder:
    """Builds prompts and responses for one backbone and one template.

    Attributes:
        config: the template.
        chat: the text around the user's message.

    Args:
        config: the template.
        tokenizer: the backbone's tokenizer.
        domain: what `{domain}` becomes where the template names none.
        chat: the text around the user's message; default: what the tokenizer's chat template gives.
        limit: positions that the LLM can read; None: as many as there are.

    Raises:
        UsageError: a template without its slot, or a backbone without a chat template that works.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: Any,
        domain: str,
        *,
        chat: ChatRecord | None = None,
        limit: int | None = None,
    ) -> None:
        self.config = config
        self._limit = limit
        for name, mark in (("item", "{item}"), ("relations", "{related}")):
            template = getattr(config, name)
            if template.count(mark) != 1:
                raise UsageError(
                    f"The template prompt.{name} must name {mark} exactly once: {template!r}.",
                    f"Put {mark} where the item goes.",
                )
        self._domain = config.domain or domain
        message = f"{config.item} {config.relations} {config.request}".replace(_DOMAIN, self._domain)
        self.chat = chat or chat_text(config, tokenizer, message)
        self._tokens = SpanTokenizer(tokenizer)
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "The backbone's tokenizer has no end-of-sequence token.", "Set one in its directory."
            )
        self.eos = int(tokenizer.eos_token_id)

    def prompt(
        self,
        item: Item,
        modalities: Callable[[int], Sequence[str]],
        positions: Callable[[Slot], int],
        *,
        reserve: int = 0,
        room: int = 0,
        relation_modalities: Callable[[int], Sequence[str]] | None = None,
        shortens: Callable[[str], bool] = lambda _: False,
    ) -> Prompt:
        """The prompt of one item; to fit, it loses relations, then the ends of the slots that may be shortened.

        Args:
            item: the item.
            modalities: the modalities that the item of a row has, in slot order.
            positions: how many positions a slot takes, its `keep` aside.
            reserve: positions to keep free for the response.
            room: positions that the LLM must have left to write in; they do not count for `prompt.max_tokens`.
            relation_modalities: the modalities by which a related item is shown; default: `modalities`.
            shortens: whether a modality's slot may be shortened from its end.

        Raises:
            TooLongError: the item does not fit even so.
            UsageError: nor does the text of the template alone.
        """
        shown = relation_modalities or modalities
        related = [row for row in item.relations if shown(row)][: self.config.max_relations]
        own = [Slot(name, item.index) for name in modalities(item.index)]
        wanted = len(related)
        while True:
            groups = [[Slot(name, row) for name in shown(row)] for row in related]
            prompt = Prompt(item.index, self._pieces(own, groups), dropped=wanted - len(related))
            excess = self._excess(prompt.length(positions), reserve, room)
            if excess <= 0:
                return prompt
            if not related:
                break
            related.pop()
        shorter = _shortened(own, excess, positions, shortens)
        if shorter is None:
            raise self._refusal(item, prompt.length(positions), reserve, room)
        return replace(prompt, pieces=self._pieces(shorter, []), cut=excess)

    def _excess(self, length: int, reserve: int, room: int) -> int:
        """Positions too many, of those that the settings or the LLM allow."""
        excess = length + reserve - self.config.max_tokens
        return excess if self._limit is None else max(excess, length + max(reserve, room) - self._limit)

    def _refusal(self, item: Item, length: int, reserve: int, room: int) -> UsageError:
        """What to raise for an item that does not fit."""
        text = Prompt(item.index, self._pieces([], [])).length(lambda _: 0)
        if self._excess(text, 0, room) > 0:
            return UsageError(
                f"The prompt's text alone takes {text} positions, and {room} are to be written: more than "
                f"prompt.max_tokens ({self.config.max_tokens}) or the model ({self._limit}) allows.",
                "Shorten the template, or raise prompt.max_tokens as far as the model allows.",
            )
        if length + reserve > self.config.max_tokens:
            most = f"prompt.max_tokens ({self.config.max_tokens})"
        else:
            most = f"the {self._limit} that the model reads"
        return TooLongError(
            f"Item {item.id!r} needs {length + max(reserve, room)} positions, more than {most}.",
            "Raise prompt.max_tokens as far as the model allows, shorten the template or the modality's slot, or "
            "leave such items out: --set prompt.too_long=leave-out.",
        )

    def anchor(self, item: Item) -> str | None:
        """The item's anchor: the configured fields joined by '. '; None when the first is missing.

        A field without a letter, a digit or a symbol, or of nothing that the tokenizer knows, is missing too: it
        would teach only when to stop. One is enough (an album's title `+`).
        """
        fields = self.anchor_fields(item)
        first = fields.get(self.config.anchor[0])
        if first is None or not self._tokens((first, True)):
            return None
        return ". ".join(fields.values())

    def anchor_fields(self, item: Item) -> dict[str, str]:
        """The fields of an item's anchor, by name; those that are missing left out."""
        values = {
            name: _text(item.title if name == "title" else item.fields.get(name))
            for name in self.config.anchor
        }
        return {name: value.rstrip(".") for name, value in values.items() if _says(value)}

    def response(self, anchor: str) -> Ids:
        """Token ids of an anchor, which is plain text, and the end of the sequence; never cut."""
        return (*self._tokens((anchor, True)), self.eos)

    def _pieces(self, own: list[Slot], related: list[list[Slot]]) -> tuple[Piece, ...]:
        text = self.config.item
        if related:
            text = f"{text} {self.config.relations}"
        groups = {"{item}": [own], "{related}": related}
        parts = _MARKS.split(f"{text} {self.config.request}")
        texts = [self._spans(part) for part in parts[::2]]
        texts[0].insert(0, (self.chat.before, False))
        texts[-1].append((self.chat.after, False))
        pieces: list[list[Span] | Slot] = [texts[0]]
        for mark, spans in zip(parts[1::2], texts[1:], strict=True):
            pieces += [*_joined(groups[mark]), spans]
        filled = [piece for piece in pieces if isinstance(piece, Slot) or any(text for text, _ in piece)]
        return tuple(piece if isinstance(piece, Slot) else self._tokens(*piece) for piece in filled)

    def _spans(self, text: str) -> list[Span]:
        """A text of the template with the domain, which is plain text, in its places."""
        spans: list[Span] = []
        for part in text.split(_DOMAIN):
            spans += [(self._domain, True), (part, False)]
        return spans[1:]


def _shortened(
    own: list[Slot], excess: int, positions: Callable[[Slot], int], shortens: Callable[[str], bool]
) -> list[Slot] | None:
    """The slots with `excess` positions fewer, longest first, each keeping one; None where that is too much."""
    keep = {slot: positions(slot) for slot in own if shortens(slot.modality)}
    for slot in sorted(keep, key=lambda slot: -keep[slot]):
        taken = min(excess, keep[slot] - 1)
        keep[slot] -= taken
        excess -= taken
    if excess > 0:
        return None
    return [replace(slot, keep=keep[slot]) if slot in keep else slot for slot in own]


def _joined(items: list[list[Slot]]) -> list[list[Span] | Slot]:
    """The slots of each item, a comma between items."""
    pieces: list[list[Span] | Slot] = []
    for slots in items:
        for i, slot in enumerate(slots):
            pieces += [[(" " if i else ", ", False)], slot]
    return pieces[1:]


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split()) if value is not None else ""


def _says(text: str) -> bool:
    """Whether a text has a letter, a digit or a symbol."""
    return any(unicodedata.category(sign)[0] in "LNS" for sign in text)
