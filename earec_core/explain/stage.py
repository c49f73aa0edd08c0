"""`explain`: what the model says an item is, from each modality alone and from all, scored with ROUGE-L."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from earec_core.explain.journal import TextJournal
from earec_core.explain.saying import modalities_of, sources_of
from earec_core.explain.scores import COPIED, NEW, VARIANTS, WHOLE, Scores, Text, scored
from earec_core.llm.backbone import Backbone
from earec_core.llm.prompts import Prompt
from earec_core.metrics.rouge import counted, new_words, rouge_l
from earec_core.types import Show, Slot
from earec_core.workspace import Run, Workspace

_JOURNAL = "texts-{}-{}.jsonl"


@dataclass(frozen=True)
class Explanation:
    """Generated anchors of a split, and their scores.

    Attributes:
        anchors: by row.
        texts: every text, by source, variant and row.
        scores: by source and part of the anchor.
        inputs: the modalities' inputs, to show what went in.
    """

    anchors: dict[int, str]
    texts: tuple[Text, ...]
    scores: tuple[Scores, ...]
    inputs: dict[str, ModalityInputs]

    def table(self) -> list[dict[str, Any]]:
        """A row per source: `items`, for each variant the mean and its interval, and aligned less shuffled."""
        return [{"source": scores.source, **scores.row()} for scores in self.scores if scores.part == WHOLE]

    def metrics(self) -> dict[str, float]:
        """Mean ROUGE-L of the whole anchors, by source and variant, as observers are told."""
        return {
            f"{scores.source} {variant}": score.mean
            for scores in self.scores
            if scores.part == WHOLE
            for variant, score in scores.variants.items()
        }

    def result(self) -> dict[str, Any]:
        """Both tables, as the run keeps them."""
        return {"rouge_l": self.table(), "parts": self.parts()}

    def parts(self) -> list[dict[str, Any]]:
        """A row per source and part of the anchor, as `table`: its fields, and its words that were not read."""
        return [
            {"source": scores.source, "part": scores.part, **scores.row()}
            for scores in self.scores
            if scores.part != WHOLE
        ]


def explain(
    workspace: Workspace,
    catalog: Catalog,
    model: str,
    config: RunConfig,
    *,
    split: Split = "test",
    max_items: int | None = None,
    items: Sequence[str] = (),
    names: Sequence[str] | None = None,
    variants: Sequence[str] = VARIANTS,
    backbone: Backbone | None = None,
    force: bool = False,
) -> Explanation:
    """Generate and score the anchors of a split's items, or of certain ones.

    A killed run goes on where it was; texts that were generated before, in the same way, are not generated again.

    Args:
        model: an adapter or composite.
        split: `train`, `valid`, `test` or `all`, by item.
        max_items: a random part of the split; default: all of it.
        items: ids of items in place of a split.
        names: modalities; default: all of the model's.
        backbone: one already loaded, without adapter.
        force: generate anew what was generated before.

    Raises:
        DataError: no item of the split has an anchor, or one of those named has none.
        UsageError: the catalog has no such item.
    """
    stored = open_model(workspace.registry, model)
    backbone = backbone or Backbone.load(config.backbone, workspace)
    aligned = stored_model(workspace, catalog, backbone, stored, names=names, overrides=config.modalities)
    if items:
        anchors = _named(aligned, catalog, items)
    else:
        anchors = _anchors(aligned, catalog, split, max_items, config.run.seed)
    beside = {"model": stored.id, "rows": list(anchors)}
    run = model_run(workspace, "explain", catalog, aligned, config, beside).start()
    for file in run.folder.glob(_JOURNAL.format("*", "*")) if force else ():
        file.unlink()
    sources = sources_of(aligned)
    texts: list[Text] = []
    if "unaligned" in variants:
        settings = {name: inputs.modality.config.model_dump() for name, inputs in aligned.inputs.items()}
        prompt, seed = stored.manifest.prompt, config.run.seed
        chat = aligned.prompts.chat
        untrained = new_model(workspace, catalog, backbone, settings, prompt, seed=seed, chat=chat)
        texts += _generate(run, untrained, sources, "unaligned", anchors, config)
    with backbone.adapted(adapter_of(stored)):
        for variant in ("aligned", "shuffled"):
            if variant in variants:
                texts += _generate(run, aligned, sources, variant, anchors, config)
    if COPIED in variants:
        texts += [text for source in sources for text in _copied(aligned, source, anchors, config)]
    scores = scored(texts, sources, config.explain.bootstrap)
    explanation = Explanation(anchors, tuple(texts), scores, aligned.inputs)
    run.finish(explanation.result(), step=len(anchors), metrics=explanation.metrics())
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


def _named(model: AlignedModel, catalog: Catalog, items: Sequence[str]) -> dict[int, str]:
    """The anchors of items by their ids, by row."""
    anchors: dict[int, str] = {}
    for id_, row in zip(items, catalog.rows_of(items), strict=True):
        anchor = model.prompts.anchor(row)
        if anchor is None:
            raise DataError(f"The item {id_!r} has no anchor to compare with.", "Name another.")
        anchors[row] = anchor
    return anchors


def _generate(
    run: Run,
    model: AlignedModel,
    sources: Sequence[str],
    variant: str,
    anchors: dict[int, str],
    config: RunConfig,
) -> list[Text]:
    """Texts of every item from each source that it has, with their scores."""
    texts: list[Text] = []
    workspace = run.workspace
    for source in sources:
        workspace.note(f"Generating from {source}, {variant} ...")
        names = modalities_of(model, source)
        room = config.explain.max_new_tokens
        having = [row for row in anchors if model.prompts.has(row, names)]
        built = {row: model.prompts.prompt(row, names, room) for row in having}
        prompts = {row: prompt for row, prompt in built.items() if not prompt.too_long}
        if len(prompts) < len(built):
            workspace.note(f"{len(built) - len(prompts)} items left out, since they do not fit.")
        cut = sum(prompt.cut > 0 for prompt in prompts.values())
        if cut:
            workspace.note(f"{cut} items do not fit; they are shown by the start of their input.")
        rows = list(prompts)
        if not rows:
            continue
        journal = TextJournal(run.folder / _JOURNAL.format(variant, source))
        if journal.texts:
            workspace.note(f"{len(journal.texts)} texts were generated before and are not generated again.")
        reading = _shuffled(model, rows, config.run.seed) if variant == "shuffled" else itself
        _write_down(journal, model, prompts, reading, config, workspace.progress)
        answers = [journal.texts[row] for row in rows]
        stemmer = config.explain.stemmer
        scores = rouge_l(answers, [anchors[row] for row in rows], stemmer=stemmer)
        read = {row: model.prompts.words(prompt) for row, prompt in prompts.items()}
        parts = _parts(model, dict(zip(rows, answers, strict=True)), anchors, read, stemmer)
        texts += [
            Text(row, source, variant, answer, score, parts[row])
            for row, answer, score in zip(rows, answers, scores.tolist(), strict=True)
        ]
    return texts


def _write_down(
    journal: TextJournal,
    model: AlignedModel,
    prompts: Mapping[int, Prompt],
    source: Callable[[Slot], int],
    config: RunConfig,
    show: Show,
) -> None:
    """Generate the texts of the rows that the journal lacks, in batches of similar length."""
    order = sorted(prompts, key=lambda row: model.prompts.length(prompts[row]))
    size, done = config.explain.batch_size, 0
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        if not journal.texts.keys() >= set(batch):
            given = [prompts[row] for row in batch]
            made = model.generate(given, config.explain.max_new_tokens, batch_size=size, source=source)
            journal.add(dict(zip(batch, made, strict=True)))
        done += len(batch)
        show(done, len(order), "generated")


def _copied(model: AlignedModel, source: str, anchors: Mapping[int, str], config: RunConfig) -> list[Text]:
    """What saying the item's own input word for word would score, of every item whose input is words."""
    names, room = modalities_of(model, source), config.explain.max_new_tokens
    parts = [model.inputs[name].modality for name in names]
    words = {
        row: "\n".join(filter(None, (part.words(model.prompts.items[row]) for part in parts)))
        for row in anchors
        if model.prompts.has(row, names) and not model.prompts.prompt(row, names, room).too_long
    }
    words = {row: text for row, text in words.items() if text}
    stemmer = config.explain.stemmer
    scores = rouge_l(list(words.values()), [anchors[row] for row in words], stemmer=stemmer).tolist()
    fields = _parts(model, words, anchors, {}, stemmer)
    return [
        Text(row, source, COPIED, text, score, fields[row])
        for (row, text), score in zip(words.items(), scores, strict=True)
    ]


def _parts(
    model: AlignedModel,
    answers: Mapping[int, str],
    anchors: Mapping[int, str],
    read: Mapping[int, str],
    stemmer: bool,
) -> dict[int, dict[str, float]]:
    """ROUGE-L of answers against the fields of an anchor that has several, and its words that were not read.

    The words that were read are left out of anchor and answer both; an anchor of such words alone has no new ones.

    Args:
        read: the words that the LLM read of an item.
    """
    pairs: list[tuple[int, str, str, str]] = []
    for row, answer in answers.items():
        if len(model.prompts.config.anchor) > 1:
            fields = model.prompts.anchor_fields(row)
            pairs += [(row, name, answer, value) for name, value in fields.items()]
        known = set(counted(read[row], stemmer=stemmer)) if read.get(row) else set()
        left = new_words(anchors[row], known, stemmer=stemmer)
        if known and left:
            pairs.append((row, NEW, new_words(answer, known, stemmer=stemmer), left))
    scores = rouge_l([p[2] for p in pairs], [p[3] for p in pairs], stemmer=stemmer)
    parts: dict[int, dict[str, float]] = {row: {} for row in answers}
    for (row, name, *_), score in zip(pairs, scores.tolist(), strict=True):
        parts[row][name] = score
    return parts


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
        own = Slot(slot.modality, slot.item)
        return swap[own] if own in swap else having[slot.item % len(having)]

    return source
