"""`explain`: what the model says an item is, from each modality alone and from all, scored with ROUGE-L."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earec_core.aligned.build import model_run, new_model
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.model import AlignedModel, itself
from earec_core.aligned.stored import adapter_of, open_model, stored_model
from earec_core.catalog import Catalog, Split, random_part
from earec_core.config import RunConfig
from earec_core.errors import DataError
from earec_core.llm.backbone import Backbone
from earec_core.metrics.rouge import rouge_l
from earec_core.metrics.statistics import Interval, interval
from earec_core.types import Slot
from earec_core.workspace import Workspace

ALL = "all"
VARIANTS = ("aligned", "shuffled", "unaligned")
"""The model; the model reading another item's input; the backbone without adapter, projectors untrained."""


@dataclass(frozen=True)
class Text:
    """One generated anchor.

    Attributes:
        row: the item's row.
        source: the modality it was generated from, or `all`.
        variant: one of `VARIANTS`.
        text: what the model said.
        rouge_l: ROUGE-L F1 against the item's anchor.
    """

    row: int
    source: str
    variant: str
    text: str
    rouge_l: float


@dataclass(frozen=True)
class Explanation:
    """Generated anchors of a split, and their scores.

    Attributes:
        anchors: by row.
        texts: every text, by source, variant and row.
        scores: by (source, variant): mean ROUGE-L with its 95% interval.
        inputs: the modalities' inputs, to show what went in.
    """

    anchors: dict[int, str]
    texts: tuple[Text, ...]
    scores: dict[tuple[str, str], Interval]
    inputs: dict[str, ModalityInputs]

    def table(self) -> list[dict[str, Any]]:
        """A row per source: `items`, and for each variant the mean and its interval."""
        rows = []
        for source in dict.fromkeys(s for s, _ in self.scores):
            row: dict[str, Any] = {"source": source}
            for variant in VARIANTS:
                score = self.scores.get((source, variant))
                if score is not None:
                    row |= {"items": score.n, variant: score.mean}
                    row |= {f"{variant}_low": score.low, f"{variant}_high": score.high}
            rows.append(row)
        return rows


def explain(
    workspace: Workspace,
    catalog: Catalog,
    model: str,
    config: RunConfig,
    *,
    split: Split = "test",
    max_items: int | None = None,
    names: Sequence[str] | None = None,
    variants: Sequence[str] = VARIANTS,
    backbone: Backbone | None = None,
) -> Explanation:
    """Generate and score the anchors of a split's items.

    Args:
        model: an adapter or composite.
        split: `train`, `valid`, `test` or `all`, by item.
        max_items: a random part of the split; default: all of it.
        names: modalities; default: all of the model's.
        backbone: one already loaded, without adapter.

    Raises:
        DataError: no item of the split has an anchor.
    """
    stored = open_model(workspace.registry, model)
    backbone = backbone or Backbone.load(config.backbone, workspace)
    aligned = stored_model(workspace, catalog, backbone, stored, names=names, overrides=config.modalities)
    anchors = _anchors(aligned, catalog, split, max_items, config.run.seed)
    beside = {"model": stored.id, "rows": list(anchors), "variants": list(variants)}
    run = model_run(workspace, "explain", catalog, aligned, config, beside).start()
    sources = [*aligned.inputs, ALL] if len(aligned.inputs) > 1 else list(aligned.inputs)
    texts: list[Text] = []
    if "unaligned" in variants:
        settings = {name: inputs.modality.config.model_dump() for name, inputs in aligned.inputs.items()}
        prompt, seed = stored.manifest.prompt, config.run.seed
        untrained = new_model(workspace, catalog, backbone, settings, prompt, seed=seed)
        texts += _generate(workspace, untrained, sources, "unaligned", anchors, config)
    with backbone.adapted(adapter_of(stored)):
        for variant in ("aligned", "shuffled"):
            if variant in variants:
                texts += _generate(workspace, aligned, sources, variant, anchors, config)
    scores = {}
    for source in sources:
        for variant in VARIANTS:
            rouge = np.array([t.rouge_l for t in texts if (t.source, t.variant) == (source, variant)])
            if len(rouge):
                scores[source, variant] = interval(rouge, resamples=config.explain.bootstrap)
    explanation = Explanation(anchors, tuple(texts), scores, aligned.inputs)
    metrics = {f"{source} {variant}": score.mean for (source, variant), score in scores.items()}
    run.finish({"rouge_l": explanation.table()}, step=len(anchors), metrics=metrics)
    return explanation


def _anchors(
    model: AlignedModel, catalog: Catalog, split: Split, max_items: int | None, seed: int
) -> dict[int, str]:
    """The anchors of a split's items, or of a random part of them, by row."""
    rows = catalog.item_split(split).tolist()
    anchors = {row: anchor for row in rows if (anchor := model.prompts.anchor(row)) is not None}
    if not anchors:
        raise DataError(
            f"No item in the {split} split of {catalog.name} has an anchor.", "Choose another --split."
        )
    having = list(anchors)
    return {having[i]: anchors[having[i]] for i in random_part(len(having), max_items, seed)}


def _generate(
    workspace: Workspace,
    model: AlignedModel,
    sources: Sequence[str],
    variant: str,
    anchors: dict[int, str],
    config: RunConfig,
) -> list[Text]:
    """Texts of every item from each source that it has, with their scores."""
    texts: list[Text] = []
    for source in sources:
        workspace.note(f"Generating from {source}, {variant} ...")
        names = list(model.inputs) if source == ALL else [source]
        rows = [row for row in anchors if model.prompts.has(row, names)]
        if not rows:
            continue
        answers = model.generate(
            [model.prompts.prompt(row, names) for row in rows],
            config.explain.max_new_tokens,
            batch_size=config.explain.batch_size,
            source=_shuffled(model, rows, config.run.seed) if variant == "shuffled" else itself,
            show=workspace.progress,
        )
        scores = rouge_l(answers, [anchors[row] for row in rows], stemmer=config.explain.stemmer)
        texts += [
            Text(row, source, variant, answer, score)
            for row, answer, score in zip(rows, answers, scores.tolist(), strict=True)
        ]
    return texts


def _shuffled(model: AlignedModel, rows: Sequence[int], seed: int) -> Callable[[Slot], int]:
    """Every item's slots read from another item of the same split that has the modality."""
    present = {name: [row for row in rows if row in inputs] for name, inputs in model.inputs.items()}
    swap: dict[Slot, int] = {}
    for name, having in present.items():
        ring = np.random.default_rng(seed).permutation(having).tolist()
        swap |= {Slot(name, row): ring[(i + 1) % len(ring)] for i, row in enumerate(ring)}

    def source(slot: Slot) -> int:
        # Relations of the item tell of it too: they are read from elsewhere as well.
        having = present[slot.modality]
        return swap[slot] if slot in swap else having[slot.item % len(having)]

    return source
