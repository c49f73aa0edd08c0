"""Prompts and training samples of a catalog's items, from whichever modalities are asked for and present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earec_core.aligned.features import ModalityInputs
from earec_core.config import PromptConfig
from earec_core.llm.prompts import Ids, Prompt, PromptBuilder
from earec_core.types import Item, Slot


@dataclass(frozen=True)
class Sample:
    """One instruction sample.

    Attributes:
        prompt: the prompt, relations dropped where they did not fit.
        response: ids of the anchor and the end of the sequence.
        length: positions of prompt and response.
    """

    prompt: Prompt
    response: Ids
    length: int


class ItemPrompts:
    """The prompts and anchors of a catalog's items; it knows which inputs each item has, not their content.

    Attributes:
        items: every item of the catalog, by row.
        config: the template.

    Args:
        inputs: the modalities at hand, by name, in slot order.
        tokenizer: the LLM's.
        domain: the catalog's name.

    Raises:
        UsageError: see `PromptBuilder`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        inputs: Mapping[str, ModalityInputs],
        config: PromptConfig,
        tokenizer: Any,
        domain: str,
    ) -> None:
        self.items, self.config = items, config
        self._inputs = inputs
        self._builder = PromptBuilder(config, tokenizer, domain)
        self._short = {n for n, i in inputs.items() if i.modality.positions() <= config.relation_positions}

    def prompt(self, row: int, modalities: Sequence[str] | None = None, reserve: int = 0) -> Prompt:
        """The prompt of one item from those of `modalities` (default: all) that it has.

        An item that has none of them gets the prompt's text alone.

        Args:
            reserve: positions to keep free for the response.

        Raises:
            UsageError: even without relations the prompt is longer than `prompt.max_tokens`.
        """
        names = self._names(modalities)
        return self._builder.prompt(
            self.items[row],
            lambda r: [name for name in names if r in self._inputs[name]],
            self.positions,
            reserve=reserve,
            relation_modalities=lambda r: [n for n in names if n in self._short and r in self._inputs[n]],
        )

    def has(self, row: int, modalities: Sequence[str] | None = None) -> bool:
        """Whether the item has one of `modalities` (default: all)."""
        return any(row in self._inputs[name] for name in self._names(modalities))

    def anchor(self, row: int) -> str | None:
        """The item's anchor; None where its first field is missing."""
        return self._builder.anchor(self.items[row])

    def sample(self, row: int, modalities: Sequence[str] | None = None) -> Sample | None:
        """The item's prompt from those of `modalities` that it has, with its anchor to be said.

        Returns:
            None for an item without anchor, or without any of the modalities.
        """
        anchor = self.anchor(row)
        if anchor is None or not self.has(row, modalities):
            return None
        response = self._builder.response(anchor)
        prompt = self.prompt(row, modalities, reserve=len(response))
        return Sample(prompt, response, self.length(prompt) + len(response))

    def positions(self, slot: Slot) -> int:
        """Positions that a slot takes."""
        return self._inputs[slot.modality].positions[slot.item]

    def length(self, prompt: Prompt) -> int:
        """Positions of a prompt, slots included."""
        return prompt.length(self.positions)

    def _names(self, modalities: Sequence[str] | None) -> list[str]:
        return [name for name in self._inputs if modalities is None or name in modalities]
