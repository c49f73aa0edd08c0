"""What an alignment would do and cost, found out before it starts: samples, tokens, arithmetic, memory, time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earec_core.align.job import Job
from earec_core.align.train import Trainer
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.metrics.lengths import Lengths
from earec_core.train.memory import Sizes, held
from earec_core.types import Slot

_SECONDS = 10.0
"""Of calibration, at least one step."""


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
        teraflops: 10^12 operations of the layers that LoRA adapts, forward and back; attention is left out.
        gibibytes: of a process, on its device, by what needs them: weights, the adapter with its optimizer, what is
            exchanged with other processes, and what a batch keeps for the way back.
        host_gibibytes: of a process, on the processor's side beside that.
        processes: that train together.
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
    host_gibibytes: Mapping[str, float]
    processes: int
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
        speed = round(self.positions_per_s)
        of_each = f" of each of {self.processes} processes" if self.processes > 1 else ""
        return [
            f"items: {self.items['train']} to train on, {self.items['valid']} to validate on"
            + (f"; {said}" if said else ""),
            f"positions of a sample: {s.least} to {s.most}, median {s.median}, 95% within {s.most_of_them}; "
            f"the first {self.shared} are computed once a batch",
            f"positions with loss: {a.least} to {a.most}, median {a.median}",
            f"steps: {self.steps} at most; {self.positions:,} positions, {self.padding:.1%} of them padding",
            f"arithmetic: {self.teraflops:.2f} TFLOP",
            f"memory{of_each}: {_said(self.gibibytes)}; on the processor's side {_said(self.host_gibibytes)}",
            f"time in one process: {sum(self.minutes.values()):.1f} minutes at {speed} positions a second "
            f"(steps {self.minutes['steps']:.1f}, validations {self.minutes['validations']:.1f} and their texts)",
        ]


def plan(
    job: Job,
    train: Sequence[Sample],
    valid: Sequence[Sample],
    items: Mapping[str, int],
    processes: int = 1,
) -> Plan:
    """What an alignment would do and cost, steps of it timed for about ten seconds; no parameter is changed.

    Args:
        job: not begun.
        train, valid, items: its `samples()`.
        processes: that would train together; the trying is done in this one.
    """
    config, backbone = job.config.align, job.model.backbone
    multiplied, weights = backbone.multiplied(), backbone.weight_bytes()
    with job.trainer(train, valid) as (trainer, _):
        job.workspace.note("Timing some steps ...")
        job.model.train()
        shared = backbone.shared(train[0].prompt)
        epoch = [list(trainer.gradients.parts_of(batch)) for batch in trainer.epoch(0)]
        computed = [sum(_positions(part, shared) for part in batch) for batch in epoch]
        useful = sum(_useful(part, shared) for batch in epoch for part in batch)
        rate, kept = _calibrated(trainer, epoch, computed)
        trained = sum(parameter.numel() for parameter in trainer.parameters.values())
    width = backbone.word_embedding.weight.element_size()
    sizes = Sizes(weights, width, backbone.table_bytes(), trained, kept)
    memory = held(sizes, job.config.engine, processes)
    positions = round(float(np.mean(computed)) * trainer.steps)
    validated = sum(sample.length - shared for sample in valid[: config.eval_items])
    validations = 1 + math.ceil(trainer.steps / config.eval_every)
    return Plan(
        items=items,
        samples=Lengths.of([sample.length for sample in train]),
        anchors=Lengths.of([len(sample.response) for sample in train]),
        shared=shared,
        steps=trainer.steps,
        positions=positions,
        padding=1 - useful / sum(computed),
        # Forward, and back to the inputs: weights are frozen.
        teraflops=(6.0 if config.gradient_checkpointing else 4.0) * multiplied * positions / 1e12,
        gibibytes={name: size / 2**30 for name, size in memory.device.items() if size},
        host_gibibytes={name: size / 2**30 for name, size in memory.host.items()},
        processes=processes,
        positions_per_s=rate,
        # Without the way back a pass takes about half as long.
        minutes={"steps": positions / rate / 60, "validations": validations * validated / rate / 2 / 60},
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


def _calibrated(
    trainer: Trainer, epoch: Sequence[Sequence[Sequence[Sample]]], computed: Sequence[int]
) -> tuple[float, int]:
    """Positions a second of some steps, and the bytes that are kept at once of the largest batch."""
    largest = epoch[max(range(len(epoch)), key=computed.__getitem__)]
    at_once = trainer.gradients.lanes([sample for part in largest for sample in part])
    kept = sum(sorted(_kept(trainer, part) for part in largest)[-at_once:])  # which warms up
    seconds, positions = 0.0, 0
    for batch, n in zip(epoch, computed, strict=True):
        started = time.monotonic()
        trainer.gradients.add([sample for part in batch for sample in part])
        seconds, positions = seconds + time.monotonic() - started, positions + n
        if seconds > _SECONDS:
            break
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.model.eval()
    return positions / seconds, kept


def _kept(trainer: Trainer, part: Sequence[Sample]) -> int:
    """Bytes that a pass keeps for the way back, parameters left out."""
    with weighed(trainer.model.parameters()) as kept:
        losses = trainer.model(part, trainer.contrast and trainer.contrast.loss)
    losses.sum().backward()
    return kept()


@contextmanager
def weighed(own: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Gives what says how many bytes the passes within it keep for the way back, but for those of `own`."""
    parameters = {tensor.untyped_storage()._cdata for tensor in own}
    kept: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        # By its place in memory a storage on the meta device would not be told from others.
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        yield lambda: sum(kept.values())


def _positions(part: Sequence[Sample], shared: int) -> int:
    """Positions that a pass computes: the prefix once, rows as long as the longest, their last token not read."""
    return shared + len(part) * (max(sample.length for sample in part) - shared - 1)


def _useful(part: Sequence[Sample], shared: int) -> int:
    """Those of them that are no padding."""
    return shared + sum(sample.length - shared - 1 for sample in part)


def _said(gibibytes: Mapping[str, float]) -> str:
    """Sizes in words."""
    return (
        f"{sum(gibibytes.values()):.2f} GiB ({', '.join(f'{n} {size:.2f}' for n, size in gibibytes.items())})"
    )
