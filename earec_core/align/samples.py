"""Training samples: a prompt and the anchor to be generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from earec_core.aligned.prompts import ItemPrompts, Sample
from earec_core.metrics.rouge import counted


@dataclass(frozen=True)
class Samples:
    """The samples of some items.

    Attributes:
        samples: in row order.
        without_anchor: items left out for want of an anchor.
        without_input: items left out for want of the modality.
        too_long: items left out since they do not fit, whatever is dropped and shortened.
        dropped_relations: relation slots dropped because an anchor would not have fit.
        shortened: items whose slot lost its end for the same reason.
    """

    samples: tuple[Sample, ...]
    without_anchor: int
    without_input: int
    too_long: int
    dropped_relations: int
    shortened: int


def build(prompts: ItemPrompts, modality: str, rows: Sequence[int]) -> Samples:
    """Samples of the items of `rows` that have the modality and an anchor, and fit.

    Raises:
        UsageError: an item does not fit and is not to be left out, or the template itself does not.
    """
    samples, no_anchor, no_input, too_long = list[Sample](), 0, 0, 0
    for row in rows:
        sample = prompts.sample(row, [modality])
        if sample is not None:
            samples.append(sample)
        elif prompts.anchor(row) is None:
            no_anchor += 1
        elif not prompts.has(row, [modality]):
            no_input += 1
        else:
            too_long += 1
    dropped = sum(sample.prompt.dropped for sample in samples)
    shortened = sum(sample.prompt.cut > 0 for sample in samples)
    return Samples(tuple(samples), no_anchor, no_input, too_long, dropped, shortened)


def copied(prompts: ItemPrompts, samples: Sequence[Sample]) -> float:
    """The part of the anchors' words that stand in what the LLM reads as words: they need only be copied."""
    words, read = 0, 0
    for sample in samples:
        known = set(counted(prompts.words(sample.prompt)))
        anchor = counted(prompts.anchor(sample.prompt.item) or "")
        words, read = words + len(anchor), read + sum(word in known for word in anchor)
    return read / max(1, words)


def batches(samples: Sequence[Sample], size: int, seed: int, epoch: int) -> Iterator[list[Sample]]:
    """One epoch's batches, in an order that (seed, epoch) fixes; each holds samples of similar length."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(samples))
    groups: list[list[int]] = []
    for start in range(0, len(order), size * 16):
        pool = sorted(order[start : start + size * 16].tolist(), key=lambda i: samples[i].length)
        groups += [pool[i : i + size] for i in range(0, len(pool), size)]
    for i in rng.permutation(len(groups)):
        yield [samples[j] for j in groups[i]]
