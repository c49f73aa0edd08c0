"""Training samples: a prompt and the anchor to be generated."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from earec_core.aligned.prompts import ItemPrompts, Sample
from earec_core.metrics.rouge import counted

_POOL = 64
"""Batches whose samples are sorted by length together: about one position in fifty is padding then."""


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


def order_of(
    groups: Sequence[Hashable], temperature: float, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """An epoch's order of n samples: a permutation, or what the groups' shares make of it.

    A group of size m has a share of m^(1/T): with more than its size it comes round again, with less some are left
    out, others each time.

    Args:
        groups: whose each sample is.
        temperature: T; with 1, or of one group, every sample comes once.
    """
    if temperature == 1 or len(set(groups)) < 2:
        return rng.permutation(len(groups))
    members = {
        name: np.array([i for i, g in enumerate(groups) if g == name]) for name in dict.fromkeys(groups)
    }
    shares = np.array([len(rows) ** (1 / temperature) for rows in members.values()])
    counts = np.floor(shares / shares.sum() * len(groups)).astype(int)
    counts[np.argmax(counts)] += len(groups) - counts.sum()
    drawn = []
    for rows, count in zip(members.values(), counts.tolist(), strict=True):
        rounds = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
        drawn.append(np.concatenate([np.empty(0, dtype=np.int64), *rounds])[:count])
    return rng.permutation(np.concatenate(drawn))


def batches(
    samples: Sequence[Sample],
    size: int,
    seed: int,
    epoch: int,
    *,
    groups: Sequence[Hashable] = (),
    temperature: float = 1.0,
) -> Iterator[list[Sample]]:
    """One epoch's batches, in an order that (seed, epoch) fixes; each holds samples of similar length.

    Args:
        groups, temperature: see `order_of`; none: every sample comes once.
    """
    rng = np.random.default_rng((seed, epoch))
    order = order_of(groups or [0] * len(samples), temperature, rng)
    together: list[list[int]] = []
    for start in range(0, len(order), size * _POOL):
        pool = sorted(order[start : start + size * _POOL].tolist(), key=lambda i: samples[i].length)
        together += [pool[i : i + size] for i in range(0, len(pool), size)]
    for i in rng.permutation(len(together)):
        yield [samples[j] for j in together[i]]


def parts(
    batch: Sequence[Sample], *, most: int | None, tokens: int | None, together: int = 1
) -> Iterator[Sequence[Sample]]:
    """A batch in parts that are run one after another; their gradients add up to the batch's.

    Args:
        most: samples of a part at most; None: any.
        tokens: positions of a part at most, all rows as long as its longest, but `together` samples'; None: any.
        together: so many samples that stand beside each other stay in one part.
    """
    part: list[Sample] = []
    for start in range(0, len(batch), together):
        more = batch[start : start + together]
        longest = max(sample.length for sample in (*part, *more))
        n = len(part) + len(more)
        if part and ((most and n > max(most, together)) or (tokens and n * longest > tokens)):
            yield part
            part = []
        part = [*part, *more]
    if part:
        yield part
