"""What an encoding would do and cost, found out before it starts: items, positions, arithmetic, memory, time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from earec_core.aligned.build import DamageNotes
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.words import ItemWords
from earec_core.catalog import Catalog
from earec_core.config import EncodeConfig, RunConfig
from earec_core.encode.batches import batched, positions_of, read_batches
from earec_core.encode.stage import opened
from earec_core.encode.windows import Coverage, Job, vector_key
from earec_core.llm.backbone import Backbone
from earec_core.llm.prompts import Prompt
from earec_core.metrics.lengths import Lengths
from earec_core.modality.sentences import SentenceEncoder, encoder_folder
from earec_core.workspace import Workspace

_SECONDS = 10.0
"""Of calibration, at least one batch."""
_PLACES = 7
"""Of the catalog, that batches are timed from at least."""
_WORDS = 256
"""Items whose words are encoded for a try."""
_FLOAT = 4
"""Bytes."""


@dataclass(frozen=True)
class EncodingPlan:
    """An encoding before it starts.

    Attributes:
        items: how many have each modality, `none` of them, and do not fit (`too_long`).
        reused: items whose vector is there already, or is that of another item of the same input.
        prompts: positions of all.
        shared: positions that all begin with and that are computed once a batch.
        positions: that are computed, padding included.
        padding: the part of them that is padding.
        teraflops: 10^12 operations of the layers that LoRA adapts; attention is left out.
        gibibytes: of the vectors and of the LLM's weights.
        positions_per_s: as measured on this machine.
        minutes: of the encoding.
    """

    items: dict[str, int]
    reused: int
    prompts: Lengths
    shared: int
    positions: int
    padding: float
    teraflops: float
    gibibytes: dict[str, float]
    positions_per_s: float
    minutes: float

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """In words."""
        having = ", ".join(f"{n} with {name.replace('_', ' ')}" for name, n in self.items.items())
        held = ", ".join(f"{name} {size:.2f}" for name, size in self.gibibytes.items())
        p = self.prompts
        return [
            f"items: {having}; {self.reused} whose vector is there already, or another's of the same input",
            f"positions of a prompt: {p.least} to {p.most}, median {p.median}, 95% within {p.most_of_them}; "
            f"the first {self.shared} are computed once a batch",
            f"positions: {self.positions:,}, {self.padding:.1%} of them padding",
            f"arithmetic: {self.teraflops:.2f} TFLOP",
            f"memory: {sum(self.gibibytes.values()):.2f} GiB ({held}), and a batch's",
            f"time: {self.minutes:.1f} minutes at {self.positions_per_s:.0f} positions a second",
        ]


def plan(
    workspace: Workspace,
    catalog: Catalog,
    model: str | None,
    config: RunConfig,
    *,
    names: Sequence[str] | None = None,
    backbone: Backbone | None = None,
) -> EncodingPlan:
    """What `encode` would do and cost, its arguments being these; nothing is stored.

    Raises:
        UsageError, PluginError, IntegrityError: as `encode`.
    """
    job = opened(workspace, catalog, model, config, names=names, backbone=backbone)
    aligned = job.model.over(catalog.all_items(), progress=workspace.progress)
    damage = DamageNotes(workspace)
    for modality, inputs in aligned.inputs.items():
        damage.tell(modality, inputs.damaged)
    damage.end()
    llm, prompts = aligned.backbone, [aligned.prompts.prompt(row) for row in range(len(catalog))]
    lengths = [aligned.prompts.length(prompt) for prompt in prompts]
    multiplied, weights = llm.multiplied(), llm.weight_bytes()
    with job.adapted():
        shared = llm.shared(prompts[0])
        chunks = _chunks(job, [vector_key(aligned, prompt) for prompt in prompts], lengths)
        computed = [shared + len(chunk) * (lengths[chunk[0]] - shared) for chunk in chunks]
        rate = _rate(aligned, prompts, chunks, computed, config.encode)
    useful = sum(lengths[row] - shared for chunk in chunks for row in chunk) + shared * len(chunks)
    return EncodingPlan(
        items=Coverage.of(aligned, prompts).recorded(),
        reused=len(prompts) - sum(map(len, chunks)),
        prompts=Lengths.of(lengths),
        shared=shared,
        positions=sum(computed),
        padding=1 - useful / sum(computed) if computed else 0.0,
        teraflops=2.0 * multiplied * sum(computed) / 1e12,
        gibibytes={"weights": weights / 2**30, "vectors": len(catalog) * llm.d_llm * _FLOAT / 2**30},
        positions_per_s=rate,
        minutes=sum(computed) / rate / 60 if computed else 0.0,
    )


def plan_words(
    workspace: Workspace, catalog: Catalog, encoder: str, config: RunConfig, *, names: Sequence[str]
) -> float:
    """Minutes that `encode_words`, its arguments being these, would take: by those of the first items."""
    words = ItemWords.open(workspace, catalog, names, config.modalities)
    model = SentenceEncoder.load(encoder_folder(encoder, workspace))
    tokens = model.tokens(next(words.windows(_WORDS, Counter())))
    with torch.inference_mode():
        model.batched(tokens[:_PLACES], config.encode.batch_tokens)  # warms up
        started = time.monotonic()
        model.batched(tokens, config.encode.batch_tokens)
    return (time.monotonic() - started) * len(catalog) / len(tokens) / 60


def _chunks(job: Job, keys: Sequence[bytes], lengths: Sequence[int]) -> list[list[int]]:
    """The batches of what is to be encoded of the catalog, its prompts having these keys and lengths."""
    chunks, seen = list[list[int]](), set[bytes]()
    with job.store() as store:
        for window in job.windows():
            missing = store.missing(keys[window.start : window.stop])
            new = [row for place in missing if keys[row := window.start + place] not in seen]
            seen |= {keys[row] for row in new}
            batches = batched([lengths[row] for row in new], positions_of(job.model, job.config.encode))
            chunks += [[new[place] for place in chunk] for chunk in batches]
    return chunks


def _rate(
    model: AlignedModel,
    prompts: Sequence[Prompt],
    chunks: Sequence[list[int]],
    computed: Sequence[int],
    config: EncodeConfig,
) -> float:
    """Positions a second, of batches from all over the catalog; 0 where there is none."""
    if not chunks:
        return 0.0
    order = list(_spread(len(chunks)))
    for _ in read_batches(model, prompts, [chunks[order[-1]]], config):
        pass  # warms up
    started, positions = time.monotonic(), 0
    with closing(read_batches(model, prompts, [chunks[i] for i in order], config)) as batches:
        for number, _ in zip(order, batches, strict=True):
            positions += computed[number]
            if time.monotonic() - started > _SECONDS:
                break
        return positions / (time.monotonic() - started)


def _spread(n: int) -> Iterator[int]:
    """The numbers below n, so that the first few are from all over them."""
    step = max(1, n // _PLACES)
    for start in range(step):
        yield from range(start, n, step)
