"""What an alignment would do and cost, found out before it starts: samples, tokens, arithmetic, memory, time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earec_core.align.job import open_job
from earec_core.align.samples import batches, parts
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.catalog import Catalog
from earec_core.config import AlignConfig, RunConfig
from earec_core.llm.backbone import Backbone
from earec_core.metrics.lengths import Lengths
from earec_core.types import Slot
from earec_core.workspace import Workspace

_SECONDS = 10.0
"""Of calibration, at least one step of each kind."""
_STATES = 16
"""Bytes of a trained parameter: itself, its gradient, and Adam's two moments, in float32."""


@dataclass(frozen=True)
class Plan:
    """An alignment before it starts.

    Attributes:
        items: to train and validate on, and those left out by reason.
        samples: positions of prompt and anchor together.
        anchors: positions that carry loss, the end of the sequence included.
        shared: positions that all prompts begin with and that are computed once a batch.
        steps: of the optimizer, at most.
        positions: that the steps compute, padding included.
        padding: the part of them that is padding.
        teraflops: 10^12 operations of the LLM's layers, forward and back; attention is left out.
        gibibytes: by what needs them: weights, the adapter with its optimizer, and what a batch keeps for the way
            back.
        positions_per_s: as measured on this machine.
        minutes: of the steps, and of the validations without their texts.
    """

    items: Mapping[str, int]
    samples: Lengths
    anchors: Lengths
    shared: int
    steps: int
    positions: int
    padding: float
    teraflops: float
    gibibytes: Mapping[str, float]
    positions_per_s: float
    minutes: Mapping[str, float]

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """In words."""
        left_out = {reason: n for reason, n in self.items.items() if reason not in ("train", "valid") and n}
        s, a = self.samples, self.anchors
        said = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in left_out.items())
        held = ", ".join(f"{name} {size:.2f}" for name, size in self.gibibytes.items())
        return [
            f"items: {self.items['train']} to train on, {self.items['valid']} to validate on"
            + (f"; {said}" if said else ""),
            f"positions of a sample: {s.least} to {s.most}, median {s.median}, 95% within {s.most_of_them}; "
            f"the first {self.shared} are computed once a batch",
            f"positions with loss: {a.least} to {a.most}, median {a.median}",
            f"steps: {self.steps} at most; {self.positions:,} positions, {self.padding:.1%} of them padding",
            f"arithmetic: {self.teraflops:.2f} TFLOP",
            f"memory: {sum(self.gibibytes.values()):.2f} GiB ({held})",
            f"time: {sum(self.minutes.values()):.1f} minutes at {self.positions_per_s:.0f} positions a second "
            f"(steps {self.minutes['steps']:.1f}, validations {self.minutes['validations']:.1f} and their texts)",
        ]


def plan(
    workspace: Workspace,
    catalog: Catalog,
    modality: str,
    config: RunConfig,
    *,
    continue_from: str | None = None,
    backbone: Backbone | None = None,
) -> Plan:
    """What `align` would do and cost, its arguments being these; nothing is stored.

    Raises:
        DataError, UsageError, PluginError, IntegrityError: as `align`, before any work.
    """
    job = open_job(workspace, catalog, modality, config, continue_from, backbone)
    train, valid, counts = job.samples()
    with job.trainer(train, valid) as (trainer, _):
        workspace.note("Timing some steps ...")
        trained = list(trainer.parameters.values())
        steps, seed = trainer.steps, config.run.seed
        return worked_out(
            job.model, trained, train, valid, config.align, steps=steps, items=counts, seed=seed
        )


def samples_shown(
    workspace: Workspace,
    catalog: Catalog,
    modality: str,
    config: RunConfig,
    number: int,
    *,
    continue_from: str | None = None,
    backbone: Backbone | None = None,
) -> list[dict[str, Any]]:
    """The first samples that `align` would train on, as the LLM reads them (see `shown`).

    Raises:
        DataError, UsageError, PluginError, IntegrityError: as `align`, before any work.
    """
    job = open_job(workspace, catalog, modality, config, continue_from, backbone)
    train, _, _ = job.samples()
    return shown(job.model, train[:number])


def worked_out(
    model: AlignedModel,
    trained: Sequence[nn.Parameter],
    train: Sequence[Sample],
    valid: Sequence[Sample],
    config: AlignConfig,
    *,
    steps: int,
    items: Mapping[str, int],
    seed: int = 0,
) -> Plan:
    """Work an alignment out, timing steps of it for about ten seconds; no parameter is changed.

    Args:
        model: its backbone has the adapter on.
        trained: what the optimizer would move.
        steps: of the optimizer, at most.
        items: see `Plan`.
    """
    epoch = list(batches(train, config.batch_size, seed, 0))
    shared = _shared(train)
    seconds, measured, kept = _calibrate(model, trained, epoch, config)
    mean = float(np.mean([_positions(batch, shared, config) for batch in epoch]))
    useful = float(np.mean([_useful(batch, shared, config) for batch in epoch]))
    rate = measured / seconds
    positions = round(mean * steps)
    weights = {id(p): p.numel() * p.element_size() for p in model.backbone.model.parameters()}
    linear = sum(
        model.backbone.model.get_submodule(name).weight.numel() for name in model.backbone.linear_modules()
    )
    validated = sum(sample.length - shared for sample in valid[: config.eval_items])
    validations = 1 + math.ceil(steps / config.eval_every)
    return Plan(
        items=items,
        samples=Lengths.of([sample.length for sample in train]),
        anchors=Lengths.of([len(sample.response) for sample in train]),
        shared=shared,
        steps=steps,
        positions=positions,
        padding=1 - useful / mean,
        teraflops=4.0 * linear * positions / 1e12,
        gibibytes={
            "weights": sum(weights.values()) / 2**30,
            "adapter and optimizer": _STATES * sum(p.numel() for p in trained) / 2**30,
            "a batch": kept / 2**30,
        },
        positions_per_s=rate,
        # Without the way back a pass takes about half as long.
        minutes={
            "steps": positions / rate / 60,
            "validations": validations * validated / rate / 2 / 60,
        },
    )


def shown(model: AlignedModel, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Samples as the LLM reads them: `item`, `positions`, its `pieces`, and the text that carries `loss`.

    A piece is a text, or a slot: whose modality, of which item, over how many positions.
    """
    decode, items = model.backbone.tokenizer.decode, model.prompts.items
    return [
        {
            "item": items[sample.prompt.item].id,
            "positions": sample.length,
            "pieces": [
                {
                    "modality": piece.modality,
                    "item": items[piece.item].id,
                    "positions": model.prompts.positions(piece),
                }
                if isinstance(piece, Slot)
                else {"words": decode(list(piece)), "positions": len(piece)}
                for piece in sample.prompt.pieces
            ],
            "loss": {"words": decode(list(sample.response)), "positions": len(sample.response)},
        }
        for sample in samples
    ]


def _calibrate(
    model: AlignedModel, trained: Sequence[nn.Parameter], epoch: Sequence[list[Sample]], config: AlignConfig
) -> tuple[float, float, int]:
    """Seconds and positions of some steps, and the bytes that the largest of them keeps."""
    shared = _shared(epoch[0])
    model.train()
    kept, measured, seconds = 0, 0.0, 0.0
    longest = max(range(len(epoch)), key=lambda k: _positions(epoch[k], shared, config))
    for k, batch in enumerate([epoch[longest], *epoch]):
        started = time.monotonic()
        for part in _parts(batch, config):
            if k:
                model(part).backward()
            else:
                kept = max(kept, _step_that_is_weighed(model, part))
        if k:  # the first warms up
            seconds, measured = (
                seconds + time.monotonic() - started,
                measured + _positions(batch, shared, config),
            )
        if seconds > _SECONDS:
            break
    for parameter in trained:
        parameter.grad = None
    model.eval()
    return seconds, measured, kept


def _step_that_is_weighed(model: AlignedModel, batch: Sequence[Sample]) -> int:
    """Bytes that a pass keeps for the way back, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        loss = model(batch)
    loss.backward()
    return sum(kept.values())


def _shared(samples: Sequence[Sample]) -> int:
    """Positions of the text that all prompts begin with."""
    first = samples[0].prompt.pieces[0]
    return 0 if isinstance(first, Slot) else len(first)


def _parts(batch: Sequence[Sample], config: AlignConfig) -> list[Sequence[Sample]]:
    together = 2 if config.pairs else 1
    return list(parts(batch, most=config.micro_batch, tokens=config.micro_tokens, together=together))


def _positions(batch: Sequence[Sample], shared: int, config: AlignConfig) -> int:
    """Positions that a batch computes: every row as long as the longest of its pass, the prefix once."""
    return sum(
        shared + len(part) * (max(s.length for s in part) - shared - 1) for part in _parts(batch, config)
    )


def _useful(batch: Sequence[Sample], shared: int, config: AlignConfig) -> int:
    return sum(shared + sum(s.length - shared - 1 for s in part) for part in _parts(batch, config))
