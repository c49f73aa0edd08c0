"""Items that follow each other in training sequences, drawn together: InfoNCE on their vectors beside Eq. 3.

Section 3.2.2 of the paper taken further. NoteLLM (Zhang et al., WWW 2024, arXiv 2403.01744) trains an LLM by both
terms on co-clicked notes.

Symbols: b samples of a batch, d the width of a vector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from earec_core.aligned.model import AlignedModel, States
from earec_core.aligned.prompts import Sample
from earec_core.aligned.readouts import Readout
from earec_core.catalog import Sequences

_WINDOW = 3
"""Places apart, at most, as for relations."""


@dataclass(frozen=True)
class Companions:
    """Which items go together.

    Attributes:
        of: by row, the rows that go with it and how likely each is drawn. A user counts as much as any other,
            whatever they did; a companion counts by one over the root of how often it was chosen.
    """

    of: Mapping[int, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def read(cls, sequences: Sequences, rows: Collection[int]) -> Companions:
        """Pairs at most three places apart in some sequences.

        Args:
            sequences: of the training part.
            rows: the items that count.
        """
        allowed = set(rows)
        weights: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        counts = np.bincount(sequences.items) if len(sequences.items) else np.zeros(1)
        for user in range(len(sequences)):
            items = sequences.of(user).tolist()
            for step in range(1, _WINDOW + 1):
                for a, b in zip(items, items[step:], strict=False):
                    if a != b and a in allowed and b in allowed:
                        weights[a][b] += 1 / len(items)
                        weights[b][a] += 1 / len(items)
        found = {}
        for row in sorted(weights):
            others = np.array(sorted(weights[row]))
            chances = np.array([weights[row][o] for o in others.tolist()]) / np.sqrt(counts[others])
            found[row] = (others, chances / chances.sum())
        return cls(found)

    def together(self, a: int, b: int) -> bool:
        """Whether two items go together."""
        return b in self._sets.get(a, ())

    @cached_property
    def _sets(self) -> dict[int, frozenset[int]]:
        return {row: frozenset(others.tolist()) for row, (others, _) in self.of.items()}

    def chances(self, rows: Sequence[int]) -> dict[int, float]:
        """How likely each of some items is one of a batch's at a place of it: as an anchor, or as a companion.

        Args:
            rows: the items that are anchors, each as likely.
        """
        shares = dict.fromkeys(rows, 0.5 / len(rows))
        for row in rows:
            others, chances = self.of.get(row, (np.array([row]), np.ones(1)))
            for other, chance in zip(others.tolist(), chances.tolist(), strict=True):
                shares[other] += 0.5 * chance / len(rows)
        return shares


class Contrast:
    """InfoNCE over a batch: of all its items, an item's companion is to be the nearest.

    Vectors are read off as `encode` would, of the prompt without the anchor. They are compared by the cosine of
    their dimensions, standardised over the batch: a few large ones, and what all items have in common, would be all
    that counts otherwise, and what they have in common changes fastest. Other companions in the batch are no
    negatives. Each score is less the log of the item's chance to be in the batch, so that the popular are not
    pushed away for being drawn often.

    Args:
        samples: to train on.
        companions: over their items.
        readout: of the vectors.
        temperature: divides the cosine.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        companions: Companions,
        readout: Readout,
        temperature: float,
    ) -> None:
        self.companions, self._readout, self._temperature = companions, readout, temperature
        shares = companions.chances([sample.prompt.item for sample in samples])
        self._log_share = {row: float(np.log(share)) for row, share in shares.items()}

    def loss(self, states: States, rows: Sequence[int]) -> Float[Tensor, ""]:
        """The loss of every item whose companion stands beside it in a batch, summed.

        Args:
            states: of the batch's prompts.
            rows: their items; pairs are at places 2k and 2k + 1.
        """
        vectors = F.normalize(_standardised(self._readout.read(states)), dim=-1)
        share = torch.tensor([self._log_share[row] for row in rows], device=vectors.device)
        scores = vectors @ vectors.T / self._temperature - share
        together = self.companions.together
        forth = [(k, k + 1) for k in range(0, len(rows) - 1, 2) if together(rows[k], rows[k + 1])]
        pairs = [*forth, *((b, a) for a, b in forth)]
        if not pairs:
            return scores.sum() * 0
        anchors, targets = torch.tensor(pairs, device=scores.device).T
        left_out = [[a == b or together(a, b) for b in rows] for a in rows]
        hidden = torch.tensor(left_out, device=scores.device)[anchors]
        hidden[torch.arange(len(pairs)), targets] = False
        return F.cross_entropy(scores[anchors].masked_fill(hidden, -torch.inf), targets, reduction="sum")


def _standardised(vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    deviation = vectors.std(0, correction=0)
    least = 1e-3 * deviation.detach().max() + 1e-12
    return (vectors - vectors.mean(0)) / deviation.clamp_min(least)


def paired_batches(
    samples: Sequence[Sample],
    companions: Companions,
    alike: Float[np.ndarray, "n d"],
    size: int,
    seed: int,
    epoch: int,
) -> Iterator[list[Sample]]:
    """One epoch's batches, in an order that (seed, epoch) fixes: every sample once, followed by a companion.

    In every other batch the items are such as look alike, the hardest to tell apart.

    Args:
        alike: a vector of each sample's input, of length 1.
        size: samples of a batch, companions included.
    """
    rng = np.random.default_rng((seed, epoch, 1))
    place = {sample.prompt.item: i for i, sample in enumerate(samples)}
    left = np.ones(len(samples), dtype=bool)
    order = rng.permutation(len(samples)).tolist()
    hard, half = False, max(1, size // 2)
    while left.any():
        if hard:
            first = next(i for i in order if left[i])
            near = np.where(left, alike @ alike[first], -np.inf)
            near[first] = np.inf
            anchors = np.argsort(-near, kind="stable")[: min(half, int(left.sum()))].tolist()
        else:
            anchors = [i for i in order if left[i]][:half]
        left[anchors] = False
        order, hard = [i for i in order if left[i]], not hard
        batch: list[Sample] = []
        for i in anchors:
            row = samples[i].prompt.item
            if row in companions.of:
                others, chances = companions.of[row]
                batch[:0] = [samples[i], samples[place[int(rng.choice(others, p=chances))]]]
            else:
                batch.append(samples[i])
        yield batch


def inputs_alike(model: AlignedModel, modality: str, rows: Sequence[int]) -> Float[np.ndarray, "n d"]:
    """A vector of length 1 for each item's input: the mean of its slot, standardised over the items."""
    inputs = model.inputs[modality]
    means = []
    with torch.no_grad():
        for start in range(0, len(rows), 256):
            h, mask = inputs.projector(inputs.encoded(rows[start : start + 256]))
            weights = mask.float()[..., None]
            means.append(((h * weights).sum(1) / weights.sum(1).clamp_min(1)).float().cpu())
    x = torch.cat(means)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    vectors: np.ndarray = F.normalize(x, dim=-1).numpy()
    return vectors
