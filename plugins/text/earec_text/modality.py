"""Text: cleaned item fields, tokenized and embedded by the LLM itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, field_validator

from earec_core.modality import (
    Encoded,
    Encoder,
    IdentityProjector,
    Item,
    LanguageModel,
    Modality,
    PluginConfig,
    Projector,
    pad,
)
from earec_core.modality.tokens import SpanTokenizer
from earec_text.cleaning import Template, clean, join_sentences

_SHOWN = 300


class TextConfig(PluginConfig):
    """Which words of an item the LLM reads."""

    fields: tuple[str, ...] = Field(
        ("description",),
        min_length=1,
        description="Item fields, joined as sentences; those missing left out.",
    )
    template: str | None = Field(
        None,
        description="Instead of `fields`, e.g. '{category}. {description}'; a missing field takes the label "
        "before it and the punctuation behind it along.",
    )
    max_tokens: int = Field(96, ge=1, description="Tokens kept, from the start.")

    @field_validator("template")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            Template.parse(value)
        return value


class WordEncoder(Encoder):
    """The LLM's tokenizer and frozen word embedding (the text row of Eq. 1).

    It holds no parameters: the embedding stays the LLM's, and `state_dict` is empty.

    Args:
        llm: whose tokenizer and embedding.
        max_tokens: most tokens of one text.
    """

    def __init__(self, llm: LanguageModel, max_tokens: int) -> None:
        super().__init__()
        self.d_enc = llm.d_llm
        self.max_tokens = max_tokens
        self._tokens = SpanTokenizer(llm.tokenizer)
        # In a tuple, so that torch does not register the LLM's embedding as a part of this module.
        self._embedding = (llm.word_embedding,)

    @torch.no_grad()
    def forward(self, batch: Sequence[str]) -> Encoded:
        (embedding,) = self._embedding
        # A description that spells a chat marker must not become that marker.
        rows = [self._tokens.encode((text, True))[: self.max_tokens] for text in batch]
        ids = torch.tensor([i for row in rows for i in row], dtype=torch.long, device=embedding.weight.device)
        return pad(embedding(ids).split([len(row) for row in rows]))


class TextModality(Modality[TextConfig]):
    """An item's words."""

    @property
    def cache_features(self) -> bool:
        return False

    @property
    def may_shorten(self) -> bool:
        return True

    def read(self, item: Item) -> str | None:
        if self.config.template is not None:
            text = Template.parse(self.config.template).fill(lambda name: _field(item, name))
        else:
            text = join_sentences(_field(item, name) for name in self.config.fields)
        return text or None

    def build_encoder(self, llm: LanguageModel) -> Encoder:
        return WordEncoder(llm, self.config.max_tokens).eval()

    def build_projector(self, d_enc: int, d_llm: int) -> Projector:
        return IdentityProjector()

    def positions(self) -> int:
        return self.config.max_tokens

    @classmethod
    def examples(cls, folder: Path) -> tuple[TextConfig, Sequence[Item]]:
        texts = ("A red pen.", "<p>A blue book &amp; a pencil.</p>", "A lamp that is green", "Chair. " * 40)
        return TextConfig(), [
            Item(row, f"e{row}", f"Thing {row}", {"description": text}) for row, text in enumerate(texts)
        ]

    def words(self, item: Item) -> str:
        return self.read(item) or ""

    def describe(self, item: Item) -> str:
        text = self.read(item) or ""
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1].rsplit(" ", 1)[0] + "…"


def _field(item: Item, name: str) -> str:
    return clean(item.title if name == "title" else item.fields.get(name))
