"""Prompts of a catalog's items, from whichever modalities are asked for and present, ready for the LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from earec_core.aligned.features import ModalityInputs
from earec_core.config import PromptConfig
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.prompts import Prompt, PromptBuilder
from earec_core.types import Item, Slot


class Instructions:
    """Builds and splices the instruction samples of one catalog for one backbone.

    Args:
        items: every item of the catalog, by row.
        backbone: the LLM.
        inputs: the modalities at hand, by name, in slot order.
        config: the template.
        domain: the catalog's name.
    """

    def __init__(
        self,
        items: Sequence[Item],
        backbone: Backbone,
        inputs: Mapping[str, ModalityInputs],
        config: PromptConfig,
        domain: str,
    ) -> None:
        self.items, self.backbone, self.inputs, self.config = items, backbone, inputs, config
        self.builder = PromptBuilder(config, backbone.tokenizer, domain)
        self._short = {
            name
            for name, one in inputs.items()
            if one.modality.prompt_slot().positions <= config.relation_positions
        }

    def prompt(self, row: int, modalities: Sequence[str] | None = None, reserve: int = 0) -> Prompt:
        """The prompt of one item from those of `modalities` (default: all) that it has.

        An item that has none of them gets the prompt's text alone.
        """
        names = [name for name in self.inputs if modalities is None or name in modalities]
        return self.builder.prompt(
            self.items[row],
            lambda r: [name for name in names if r in self.inputs[name]],
            self.positions,
            reserve=reserve,
            relation_modalities=lambda r: [n for n in names if n in self._short and r in self.inputs[n]],
        )

    def positions(self, slot: Slot) -> int:
        """Positions that a slot takes."""
        return self.inputs[slot.modality].positions(slot.item)

    def length(self, prompt: Prompt) -> int:
        """Positions of a prompt."""
        return prompt.length(self.positions)

    def splice(self, prompts: Sequence[Prompt], source: Callable[[Slot], int] = lambda s: s.item) -> Spliced:
        """The prompts as embeddings; `source` says which row's input goes into a slot (default: its own)."""
        wanted = {slot: source(slot) for prompt in prompts for slot in prompt.slots}
        made: dict[Slot, Tensor] = {}
        for name, one in self.inputs.items():
            rows = sorted({row for slot, row in wanted.items() if slot.modality == name})
            made.update(one.slots(rows))
        return self.backbone.splice(
            prompts,
            {slot: made[Slot(slot.modality, row)] for slot, row in wanted.items()},
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        batch_size: int = 32,
        source: Callable[[Slot], int] = lambda s: s.item,
        show: Callable[[int, int, str], None] = lambda *_: None,
    ) -> list[str]:
        """Greedy texts for prompts, in their order; batches hold prompts of similar length."""
        order = sorted(range(len(prompts)), key=lambda i: self.length(prompts[i]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            spliced = self.splice([prompts[i] for i in chunk], source)
            for i, text in zip(chunk, self.backbone.generate(spliced, max_new_tokens), strict=True):
                texts[i] = text
            show(min(start + batch_size, len(order)), len(order), "generated")
        return texts
