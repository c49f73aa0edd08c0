"""What a model that is on its LLM says of a few items, from each modality alone and from all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from earec_core.aligned.model import AlignedModel
from earec_core.config import ExplainConfig
from earec_core.explain.scores import ALL
from earec_core.metrics.rouge import rouge_l


@dataclass(frozen=True)
class Said:
    """What the model said of an item.

    Attributes:
        row: the item's row.
        source: the modality that it read, or `all`.
        text: what it said.
        rouge_l: ROUGE-L F1 against the item's anchor; None where it has none.
    """

    row: int
    source: str
    text: str
    rouge_l: float | None


def sources_of(model: AlignedModel) -> list[str]:
    """What texts are generated from: each modality, and all together where there are several."""
    return [*model.inputs, ALL] if len(model.inputs) > 1 else list(model.inputs)


def modalities_of(model: AlignedModel, source: str) -> list[str]:
    """The modalities that a source is."""
    return list(model.inputs) if source == ALL else [source]


def say(
    model: AlignedModel,
    rows: Sequence[int],
    config: ExplainConfig,
    *,
    check: Callable[[], None] = lambda: None,
) -> list[Said]:
    """What the model says of items, source by source; of one that an item lacks, or that does not fit, nothing.

    Args:
        model: over these items, its adapter on its LLM.
        check: called before each batch; what it raises ends the work.
    """
    said: list[Said] = []
    for source in sources_of(model):
        names = modalities_of(model, source)
        having = [row for row in rows if model.prompts.has(row, names)]
        built = [model.prompts.prompt(row, names, config.max_new_tokens) for row in having]
        prompts = [prompt for prompt in built if not prompt.too_long]
        for start in range(0, len(prompts), config.batch_size):
            check()
            some = prompts[start : start + config.batch_size]
            texts = model.generate(some, config.max_new_tokens, batch_size=config.batch_size)
            for prompt, text in zip(some, texts, strict=True):
                anchor = model.prompts.anchor(prompt.item)
                score = None if anchor is None else rouge_l([text], [anchor], stemmer=config.stemmer).item()
                said.append(Said(prompt.item, source, text, score))
    return said
