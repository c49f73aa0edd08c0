"""What the model says an item is, from each modality alone and from all together, scored with ROUGE-L."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earec_core import plugins
from earec_core.aligned.build import new_model
from earec_core.aligned.features import ModalityInputs
from earec_core.aligned.model import AlignedModel, itself
from earec_core.aligned.stored import StoredModel, stored_model
from earec_core.catalog import Catalog, Split
from earec_core.config import RunConfig
from earec_core.errors import DataError
from earec_core.home import home
from earec_core.llm.backbone import Backbone
from earec_core.metrics.rouge import rouge_l
from earec_core.metrics.statistics import Interval, interval
from earec_core.modality import Context
from earec_core.types import Show, Slot
from earec_registry import Registry

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
    catalog: Catalog,
    model: str,
    config: RunConfig,
    registry: Registry,
    *,
    split: Split = "test",
    max_items: int | None = None,
    names: Sequence[str] | None = None,
    variants: Sequence[str] = VARIANTS,
    backbone: Backbone | None = None,
    note: Callable[[str], None] = lambda _: None,
    show: Show = lambda *_: None,
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
    stored = StoredModel.open(registry, model)
    backbone = backbone or Backbone.load(config.backbone, note)
    items = catalog.all_items()
    aligned = stored_model(
        stored, items, catalog.name, backbone, registry, names=names, overrides=config.modalities, show=show
    )
    rows = catalog.item_split(split).tolist()
    anchors = {row: anchor for row in rows if (anchor := aligned.prompts.anchor(row)) is not None}
    if max_items is not None and len(anchors) > max_items:
        picked = np.random.default_rng(config.align.seed).choice(list(anchors), max_items, replace=False)
        anchors = {row: anchors[row] for row in sorted(picked.tolist())}
    if not anchors:
        raise DataError(
            f"No item in the {split} split of {catalog.name} has an anchor.", "Choose another --split."
        )
    sources = [*aligned.inputs, ALL] if len(aligned.inputs) > 1 else list(aligned.inputs)

    texts: list[Text] = []
    for variant in [v for v in ("unaligned", "aligned", "shuffled") if v in variants]:
        used = aligned
        if variant == "unaligned":
            used = new_model(
                list(aligned.inputs),
                {name: one.modality.config.model_dump() for name, one in aligned.inputs.items()},
                items,
                backbone,
                Context(catalog.name, registry.root, home()),
                stored.prompt,
                seed=config.align.seed,
                show=show,
            )
        with nullcontext() if variant == "unaligned" else backbone.adapted(stored.adapter()):
            for source in sources:
                note(f"Generating from {source}, {variant} ...")
                texts += _generate(used, source, variant, anchors, config, show)
    scores = {}
    for source in sources:
        for variant in VARIANTS:
            values = np.array([t.rouge_l for t in texts if (t.source, t.variant) == (source, variant)])
            if len(values):
                scores[source, variant] = interval(values, resamples=config.explain.bootstrap)
    return Explanation(anchors, tuple(texts), scores, aligned.inputs)


def _generate(
    model: AlignedModel,
    source: str,
    variant: str,
    anchors: dict[int, str],
    config: RunConfig,
    show: Show,
) -> list[Text]:
    names = list(model.inputs) if source == ALL else [source]
    rows = [row for row in anchors if model.prompts.has(row, names)]
    if not rows:
        return []
    texts = model.generate(
        [model.prompts.prompt(row, names) for row in rows],
        config.explain.max_new_tokens,
        batch_size=config.explain.batch_size,
        source=_shuffled(model, rows, config.align.seed) if variant == "shuffled" else itself,
        show=show,
    )
    scores = rouge_l(texts, [anchors[row] for row in rows], stemmer=config.explain.stemmer)
    return [
        Text(*one)
        for one in zip(rows, [source] * len(rows), [variant] * len(rows), texts, scores.tolist(), strict=True)
    ]


def _shuffled(model: AlignedModel, rows: Sequence[int], seed: int) -> Callable[[Slot], int]:
    """Every item's slots read from another item of the same split that has the modality."""
    swap: dict[Slot, int] = {}
    for name, one in model.inputs.items():
        have = [row for row in rows if row in one]
        ring = np.random.default_rng(seed).permutation(have).tolist()
        swap |= {Slot(name, row): ring[(i + 1) % len(ring)] for i, row in enumerate(ring)}
    related = {name: [row for row in rows if row in one] for name, one in model.inputs.items()}

    def source(slot: Slot) -> int:
        # Relations of the item tell of it too: they are read from elsewhere as well.
        if slot in swap:
            return swap[slot]
        return related[slot.modality][slot.item % len(related[slot.modality])]

    return source


def text_rows(explanation: Explanation, catalog: Catalog) -> list[dict[str, Any]]:
    """A row per text, as tables and reports show it."""
    ids = catalog.items["item_id"].to_list()
    return [
        {
            "item_id": ids[text.row],
            "anchor": explanation.anchors[text.row],
            "source": text.source,
            "variant": text.variant,
            "text": text.text,
            "rouge_l": text.rouge_l,
        }
        for text in explanation.texts
    ]


def write_texts(explanation: Explanation, catalog: Catalog, target: Path) -> None:
    """Write every text with its anchor and score as one Parquet table, atomically."""
    import polars as pl

    schema = dict.fromkeys(("item_id", "anchor", "source", "variant", "text"), pl.String)
    table = pl.DataFrame(text_rows(explanation, catalog), schema={**schema, "rouge_l": pl.Float64})
    temp = target.with_name(f".{target.name}.partial")
    table.write_parquet(temp)
    temp.replace(target)


def inputs_shown(explanation: Explanation, catalog: Catalog) -> Callable[[str, str], str]:
    """From an item's id and a modality to what went in, as a report shows it: text or a `data:` image.

    Raises:
        PluginError: by the function, where the plugin cannot show the item.
    """
    items = {item.id: item for item in catalog.all_items()}

    def shown(item_id: str, modality: str) -> str:
        try:
            return explanation.inputs[modality].modality.describe(items[item_id])
        except Exception as error:
            plugin = plugins.failed(plugins.get(modality), f"Describing item {item_id!r}", error)
            raise plugins.refusal(plugin) from error

    return shown
