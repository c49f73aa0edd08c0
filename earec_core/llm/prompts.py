"""Prompts and responses (Figure 3): token pieces and slots, never a string that is tokenized again.

A prompt is a sequence of pieces: token ids of text, or a `Slot` whose embeddings are spliced in later. Every
piece of text is tokenized on its own, so where the response starts is known, not guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earec_core.config import PromptConfig
from earec_core.errors import UsageError
from earec_core.types import Item, Slot

Ids = tuple[int, ...]
Piece = Ids | Slot

_USER = "\x02earec-user\x03"
_MARKS = re.compile(r"(\{item\}|\{related\})")


@dataclass(frozen=True)
class Prompt:
    """A prompt for one item.

    Attributes:
        item: the item's row.
        pieces: token ids and slots in reading order; the first piece is the text that all prompts share.
        dropped: relation slots that did not fit.
    """

    item: int
    pieces: tuple[Piece, ...]
    dropped: int = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Slot))

    def length(self, positions: Callable[[Slot], int]) -> int:
        """Positions of the whole prompt, slots included."""
        return sum(positions(p) if isinstance(p, Slot) else len(p) for p in self.pieces)


class PromptBuilder:
    """Builds prompts and responses for one backbone and one template.

    Args:
        config: the template.
        tokenizer: the backbone's tokenizer.
        domain: what `{domain}` becomes where the template names none.

    Raises:
        UsageError: a template without its slot, or a backbone without a chat template.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any, domain: str) -> None:
        self.config = config
        self._tokenizer = tokenizer
        for name, mark in (("item", "{item}"), ("relations", "{related}")):
            template = getattr(config, name)
            if template.count(mark) != 1:
                raise UsageError(
                    f"The template prompt.{name} must name {mark} exactly once: {template!r}.",
                    f"Put {mark} where the item goes.",
                )
        self._domain = config.domain or domain
        self._before, self._after = _chat_format(config, tokenizer)
        self._encoded: dict[str, Ids] = {}
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
        relation_modalities: Callable[[int], Sequence[str]] | None = None,
    ) -> Prompt:
        """The prompt of one item.

        Args:
            item: the item.
            modalities: the modalities that the item of a row has, in slot order.
            positions: how many positions a slot takes.
            reserve: positions to keep free for the response.
            relation_modalities: the modalities by which a related item is shown; default: `modalities`.

        Raises:
            UsageError: even without relations the prompt is longer than `prompt.max_tokens`.
        """
        shown = relation_modalities or modalities
        related = [row for row in item.relations if shown(row)][: self.config.max_relations]
        own = [Slot(name, item.index) for name in modalities(item.index)]
        wanted = len(related)
        while True:
            groups = [[Slot(name, row) for name in shown(row)] for row in related]
            prompt = Prompt(item.index, self._pieces(own, groups), dropped=wanted - len(related))
            length = prompt.length(positions) + reserve
            if length <= self.config.max_tokens:
                return prompt
            if not related:
                raise UsageError(
                    f"Item {item.id!r} needs {length} positions, more than prompt.max_tokens "
                    f"({self.config.max_tokens}).",
                    "Raise prompt.max_tokens or shorten the template or the modality's slot.",
                )
            related.pop()

    def anchor(self, item: Item) -> str | None:
        """The item's anchor: the configured fields joined by '. '; None when the first is missing.

        A field of punctuation alone, such as a title of dots, counts as missing: nothing could be learnt from it
        but when to stop. One letter, digit or symbol is enough (an album's title `+`).
        """
        values = [
            _text(item.title if name == "title" else item.fields.get(name)) for name in self.config.anchor
        ]
        return ". ".join(v.rstrip(".") for v in values if _says(v)) if _says(values[0]) else None

    def response(self, anchor: str) -> Ids:
        """Token ids of an anchor and the end of the sequence; never cut."""
        return (*self._encode(anchor), self.eos)

    def _pieces(self, own: list[Slot], related: list[list[Slot]]) -> tuple[Piece, ...]:
        text = self.config.item
        if related:
            text = f"{text} {self.config.relations}"
        text = f"{text} {self.config.request}".replace("{domain}", self._domain)
        groups = {"{item}": [own], "{related}": related}
        pieces: list[str | Slot] = []
        for part in _MARKS.split(self._before + text + self._after):
            pieces += _joined(groups[part]) if part in groups else [part]
        return tuple(p if isinstance(p, Slot) else self._encode(p) for p in pieces if p)

    def _encode(self, text: str) -> Ids:
        if text not in self._encoded:
            self._encoded[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._encoded[text]


def _joined(items: list[list[Slot]]) -> list[str | Slot]:
    """The slots of each item, a comma between items."""
    pieces: list[str | Slot] = []
    for slots in items:
        for i, slot in enumerate(slots):
            pieces += [" " if i else ", ", slot]
    return pieces[1:]


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split()) if value is not None else ""


def _says(text: str) -> bool:
    """Whether a text has a letter, a digit or a symbol."""
    return any(unicodedata.category(sign)[0] in "LNS" for sign in text)


def _chat_format(config: PromptConfig, tokenizer: Any) -> tuple[str, str]:
    """The text before and after the user's message, up to where the response starts."""
    if config.chat == "v1":
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
        system = f"{config.system} " if config.system else ""
        return f"{bos}{system}USER: ", " ASSISTANT:"
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The backbone has no chat template.", "Choose the paper's with --set prompt.chat=v1."
        )
    messages: list[Mapping[str, str]] = [{"role": "user", "content": _USER}]
    if config.system:
        messages.insert(0, {"role": "system", "content": config.system})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(_USER)
    return before, after


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
