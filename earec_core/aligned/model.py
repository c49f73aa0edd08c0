"""The model: an LLM and a projector for each modality, reading a catalog's items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.prompts import ItemPrompts, Sample
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.lanes import lanes, side_by_side
from earec_core.llm.prompts import Prompt
from earec_core.types import Item, Show, Slot

_ROWS = 8
"""Of a batch of texts that is written beside others, at least."""


def itself(slot: Slot) -> int:
    """The row whose input goes into a slot: the slot's own."""
    return slot.item


@dataclass(frozen=True)
class States:
    """What the LLM makes of prompts, behind the prefix that all of them share.

    Attributes:
        hidden: hidden states; behind a prompt's length they are padding's.
        lengths: of the prompts.
        slots: for each position the index into `modalities` of the item's own slot that it is in; -1 elsewhere.
        modalities: the model's, in slot order.
    """

    hidden: Float[Tensor, "b s d_llm"]
    lengths: Int[Tensor, " b"]
    slots: Int[Tensor, "b s"]
    modalities: tuple[str, ...]


PromptLoss = Callable[[States, Sequence[int]], Tensor]
"""A loss of what prompts become, summed over a batch: of their states, responses left out, and their items."""


class AlignedModel(nn.Module):
    """One module that holds everything with parameters, so that a training engine can wrap it.

    Its `forward` is the loss. The LLM stays in evaluation mode, frozen but for what an adapter adds
    (`Backbone.adapted`); `train` switches projectors and adapter.

    Attributes:
        llm: the transformers causal LM.
        projectors: the inputs', in their order; a `ModuleDict` would refuse a modality named `items`.
        backbone: the same LLM as what it can do.
        inputs: the modalities' inputs of the catalog, by name, in slot order.
        prompts: the items' prompts and anchors.
    """

    def __init__(
        self, backbone: Backbone, inputs: Mapping[str, ModalityInputs], prompts: ItemPrompts
    ) -> None:
        super().__init__()
        self.llm: nn.Module = backbone.model
        self.projectors = nn.ModuleList(modality.projector for modality in inputs.values())
        self.backbone, self.inputs, self.prompts = backbone, dict(inputs), prompts
        self.eval()

    def over(
        self, items: Sequence[Item], related: Sequence[Item] = (), *, progress: Show = lambda *_: None
    ) -> AlignedModel:
        """The same model over other items, whose inputs are read.

        Args:
            related: those that prompts of `items` may show beside, as far as `ItemPrompts.shows_related` says so.
        """
        inputs = {
            name: one.over(
                [*items, *(related if self.prompts.shows_related(name) else ())], progress=progress
            )
            for name, one in self.inputs.items()
        }
        by_row = {item.index: item for item in (*related, *items)}
        return AlignedModel(self.backbone, inputs, self.prompts.over(inputs, by_row))

    def train(self, mode: bool = True) -> AlignedModel:
        """Switch projectors and adapter to training; the LLM itself has no part in it."""
        self.training = mode
        self.projectors.train(mode)
        if self.backbone.adapter is not None:
            self.backbone.adapter.train(mode)
        return self

    def forward(
        self, samples: Sequence[Sample], beside: PromptLoss | None = None
    ) -> Float[Tensor, ""] | Float[Tensor, " 2"]:
        """Eq. 3: negative log-likelihood summed over the response tokens, given prompt and earlier tokens.

        Args:
            beside: a second loss; both are returned then.
        """
        return self.loss_of(self.splice_samples(samples), samples, beside)

    def splice_samples(self, samples: Sequence[Sample]) -> Spliced:
        """Prompts and responses as embeddings; the last token is predicted, never read."""
        return self.splice([Prompt(s.prompt.item, (*s.prompt.pieces, s.response[:-1])) for s in samples])

    def loss_of(
        self, spliced: Spliced, samples: Sequence[Sample], beside: PromptLoss | None = None
    ) -> Float[Tensor, ""] | Float[Tensor, " 2"]:
        """`forward` of samples that are embeddings already."""
        hidden = self.backbone.hidden(spliced)
        rows, columns, targets = list[int](), list[int](), list[int]()
        for i, (sample, length) in enumerate(zip(samples, spliced.lengths.tolist(), strict=True)):
            n = len(sample.response)
            rows += [i] * n
            columns += range(length - n, length)
            targets += sample.response
        logits = self.backbone.logits(hidden[rows, columns])
        loss = F.cross_entropy(logits, torch.tensor(targets, device=logits.device), reduction="sum")
        if beside is None:
            return loss
        read = torch.tensor([len(sample.response) - 1 for sample in samples], device=spliced.lengths.device)
        states = States(hidden, spliced.lengths - read, self._slots(spliced), tuple(self.inputs))
        return torch.stack([loss, beside(states, [sample.prompt.item for sample in samples])])

    def states(self, batch: Spliced, *, layer: int | None = None) -> States:
        """What the LLM makes of prompts.

        Args:
            layer: whose output is wanted, from 1; default: the last layer's, after its norm.
        """
        hidden = self.backbone.hidden(batch, layer=layer)
        return States(hidden, batch.lengths, self._slots(batch), tuple(self.inputs))

    def _slots(self, batch: Spliced) -> Int[Tensor, "b s"]:
        """See `States.slots`."""
        names = tuple(self.inputs)
        order = torch.tensor([*(names.index(m) for m in batch.modalities), -1], device=batch.owners.device)
        return torch.where(batch.own, order[batch.owners], -1)

    def splice(self, prompts: Sequence[Prompt], source: Callable[[Slot], int] = itself) -> Spliced:
        """The prompts as embeddings (Eq. 1 and 2).

        Args:
            source: which row's input goes into a slot.
        """
        rows_of_slots = {slot: source(slot) for prompt in prompts for slot in prompt.slots}
        embeddings: dict[Slot, Tensor] = {}
        for (name, inputs), projector in zip(self.inputs.items(), self.projectors, strict=True):
            rows = sorted({row for slot, row in rows_of_slots.items() if slot.modality == name})
            if rows:
                h, mask = inputs.project(inputs.encoded(rows), projector)
                embeddings |= {Slot(name, row): h[i, mask[i]] for i, row in enumerate(rows)}
        spliced = {
            slot: embeddings[Slot(slot.modality, row)][: slot.keep] for slot, row in rows_of_slots.items()
        }
        return self.backbone.splice(prompts, spliced)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        batch_size: int = 64,
        source: Callable[[Slot], int] = itself,
        show: Show = lambda *_: None,
    ) -> list[str]:
        """Greedy texts for prompts, in their order; batches hold prompts of similar length.

        Where the LLM has fewer positions left than `max_new_tokens`, as many are written.
        """
        order = sorted(range(len(prompts)), key=lambda i: self.prompts.length(prompts[i]))
        number = lanes(self.backbone, min(batch_size, len(prompts)), least=_ROWS)
        size = math.ceil(batch_size / number)
        chunks = [order[start : start + size] for start in range(0, len(order), size)]

        def begun(chunk: Sequence[int]) -> tuple[Spliced | None, int]:
            new = self._left(prompts[chunk[-1]], max_new_tokens)
            return (self.splice([prompts[i] for i in chunk], source) if new > 0 else None), new

        def continued(batch: tuple[Spliced | None, int]) -> list[str]:
            spliced, new = batch
            return [] if spliced is None else self.backbone.generate(spliced, new)

        texts, done = [""] * len(prompts), 0
        written = side_by_side(continued, map(begun, chunks), number)
        for chunk, new_texts in zip(chunks, written, strict=True):
            for i, text in zip(chunk, new_texts, strict=False):
                texts[i] = text
            done += len(chunk)
            show(done, len(order), "generated")
        return texts

    def _left(self, longest: Prompt, wanted: int) -> int:
        """Positions to write in behind a prompt, at most as many as wanted."""
        limit = self.backbone.positions
        return wanted if limit is None else min(wanted, limit - self.prompts.length(longest))
