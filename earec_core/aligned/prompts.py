"""Prompts and training samples of a catalog's items, from whichever modalities are asked for and present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from earec_core.aligned.features import ModalityInputs
from earec_core.llm.prompts import Prompt, PromptBuilder, TooLongError
from earec_core.modality.tokens import Ids
from earec_core.types import Item, Slot


@dataclass(frozen=True)
class Sample:
    """One instruction sample.

    Attributes:
        prompt: the prompt, relations dropped and slots shortened where they did not fit.
        response: ids of the anchor and the end of the sequence.
        length: positions of prompt and response.
    """

    prompt: Prompt
    response: Ids
    length: int


class ItemPrompts:
    """The prompts and anchors of a catalog's items; it knows which inputs each item has, not their content.

    Attributes:
        items: every item of the catalog, or some, by row.
        config: the template.
        chat: the text around the user's message.

    Args:
        inputs: the modalities at hand, by name, in slot order.
        builder: of the template, for the LLM.
    """

    def __init__(
        self,
        items: Sequence[Item] | Mapping[int, Item],
        inputs: Mapping[str, ModalityInputs],
        builder: PromptBuilder,
    ) -> None:
        self.items, self.config, self.chat = items, builder.config, builder.chat
        self._inputs, self._builder = inputs, builder
        most = self.config.relation_positions
        self._short = {n for n, i in inputs.items() if i.modality.positions() <= most}
        self._shortens = {n for n, i in inputs.items() if i.modality.may_shorten}

    def over(
        self, inputs: Mapping[str, ModalityInputs], items: Mapping[int, Item] | None = None
    ) -> ItemPrompts:
        """The same template and items, or others, from other inputs."""
        return ItemPrompts(self.items if items is None else items, inputs, self._builder)

    def shows_related(self, modality: str) -> bool:
        """Whether a related item is shown by its input in a modality."""
        return self.config.max_relations > 0 and modality in self._short

    def prompt(self, row: int, modalities: Sequence[str] | None = None, room: int = 0) -> Prompt:
        """The prompt of one item from those of `modalities` (default: all) that it has.

        An item that has none of them gets the prompt's text alone; so does one that does not fit (`too_long`).

        Args:
            room: positions that the LLM must have left to write in.

        Raises:
            TooLongError: the item does not fit, and `prompt.too_long` says to stop.
            UsageError: the template alone does not fit.
        """
        names = self._names(modalities)
        prompt = self._fitting(row, names, room=room)
        if prompt is not None:
            return prompt
        return replace(self._build(row, [], room=room), too_long=True)

    def has(self, row: int, modalities: Sequence[str] | None = None) -> bool:
        """Whether the item has one of `modalities` (default: all)."""
        return any(row in self._inputs[name] for name in self._names(modalities))

    def anchor(self, row: int) -> str | None:
        """The item's anchor; None where its first field is missing."""
        return self._builder.anchor(self.items[row])

    def anchor_fields(self, row: int) -> dict[str, str]:
        """The fields of the item's anchor, by name."""
        return self._builder.anchor_fields(self.items[row])

    def words(self, prompt: Prompt) -> str:
        """The words that the LLM reads as they are in a prompt's slots, those of related items too."""
        words = (self._inputs[s.modality].modality.words(self.items[s.item]) for s in prompt.slots)
        return "\n".join(filter(None, words))

    def sample(self, row: int, modalities: Sequence[str] | None = None) -> Sample | None:
        """The item's prompt from those of `modalities` that it has, with its anchor to be said.

        Returns:
            None for an item without anchor, without any of the modalities, or too long to fit.

        Raises:
            TooLongError: it does not fit, and `prompt.too_long` says to stop.
        """
        anchor = self.anchor(row)
        if anchor is None or not self.has(row, modalities):
            return None
        response = self._builder.response(anchor)
        prompt = self._fitting(row, self._names(modalities), reserve=len(response))
        return Sample(prompt, response, self.length(prompt) + len(response)) if prompt else None

    def positions(self, slot: Slot) -> int:
        """Positions that a slot takes."""
        positions = self._inputs[slot.modality].positions[slot.item]
        return positions if slot.keep is None else min(positions, slot.keep)

    def length(self, prompt: Prompt) -> int:
        """Positions of a prompt, slots included."""
        return prompt.length(self.positions)

    def _fitting(self, row: int, names: Sequence[str], *, reserve: int = 0, room: int = 0) -> Prompt | None:
        """The item's prompt; None where it does not fit and is to be left out."""
        try:
            return self._build(row, names, reserve=reserve, room=room)
        except TooLongError:
            if self.config.too_long == "stop":
                raise
            return None

    def _build(self, row: int, names: Sequence[str], *, reserve: int = 0, room: int = 0) -> Prompt:
        return self._builder.prompt(
            self.items[row],
            lambda r: [name for name in names if r in self._inputs[name]],
            self.positions,
            reserve=reserve,
            room=room,
            relation_modalities=lambda r: [n for n in names if n in self._short and r in self._inputs[n]],
            shortens=self._shortens.__contains__,
        )

    def _names(self, modalities: Sequence[str] | None) -> list[str]:
        return [name for name in self._inputs if modalities is None or name in modalities]
