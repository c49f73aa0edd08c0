"""The training loop of stage 1: loss on response tokens only, resumable to the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from earec_core.align.contrast import Contrast, paired_batches
from earec_core.align.gradients import Gradients
from earec_core.align.samples import batches
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.catalog.splits import FROM
from earec_core.config import AlignConfig
from earec_core.errors import EarecError
from earec_core.metrics.rouge import rouge_l
from earec_core.train import checkpoint, schedule
from earec_core.train.engine import MakeEngine, TorchEngine
from earec_core.train.processes import Processes
from earec_core.types import Show

Point = dict[str, float]

_FAR = 1_000_000_007
"""Between the seeds of two processes."""


@dataclass
class Progress:
    """Where a training stands; all of it is in the checkpoint.

    Attributes:
        step: optimizer steps done.
        epoch, batch: the next batch to train on.
        elapsed: seconds of training so far, over all sessions.
        best: lowest validation loss; `best_step` is where.
        stale: validations since the best.
        history: one point a step or validation, in order.
        engines: what ran it, in order, as `EngineRecord`.
        finished: nothing is left to do.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed: float = 0.0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    history: list[Point] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


class Trainer:
    """Trains a model's LoRA and projectors.

    Args:
        model: its backbone has the adapter on.
        lora: the adapter's parameters by checkpoint name.
        train, valid: samples.
        config: optimisation.
        file: the checkpoint.
        observe: called with (step, metrics) after each step and validation.
        contrast: the second loss, with `config.pairs` its weight; None: Eq. 3 alone.
        alike: a vector of each training sample's input, for the contrast's batches.
        seed: of the order of samples and of dropout.
        engine: makes what runs the steps.
        processes: that train together, this one among them.
    """

    def __init__(
        self,
        model: AlignedModel,
        lora: Mapping[str, nn.Parameter],
        train: Sequence[Sample],
        valid: Sequence[Sample],
        config: AlignConfig,
        file: Path,
        observe: Callable[[int, Mapping[str, float]], None],
        *,
        contrast: Contrast | None = None,
        alike: Float[np.ndarray, "n d"] | None = None,
        seed: int = 0,
        engine: MakeEngine = TorchEngine,
        processes: Processes | None = None,
    ) -> None:
        self.model = model
        self.train_samples, self.config, self.observe, self.seed = train, config, observe, seed
        self.contrast, self.alike = contrast, alike
        items = model.prompts.items
        self.groups = [items[sample.prompt.item].fields.get(FROM) for sample in train]
        self.valid_loss_samples = list(valid[: config.eval_items])
        self.rouge_samples = list(valid[: config.rouge_items])
        self.file = file
        self.parameters: dict[str, nn.Parameter] = {
            **{f"lora/{n}": p for n, p in lora.items()},
            **{f"projector/{n}": p for n, p in model.projectors.named_parameters()},
        }
        self.lora = list(lora.values())
        projectors = [p for p in model.projectors.parameters() if p.requires_grad]
        groups = [{"params": self.lora, "lr": config.lr}]
        if projectors:
            groups.append({"params": projectors, "lr": config.projector_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.processes = processes or Processes()
        self.engine = engine(self.optimizer, config.clip, self.processes)
        self.gradients = Gradients(
            model, list(self.parameters.values()), config, self.engine, self.processes, contrast
        )
        # With companions beside them, half as many samples of its own are in a batch.
        per_epoch = math.ceil(
            len(train) / (config.batch_size if contrast is None else max(1, config.batch_size // 2))
        )
        self.warm_steps = round(per_epoch * config.projector_warmup_epochs) if projectors else 0
        self.steps = self.warm_steps + max(1, round(per_epoch * config.epochs))
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()

    def run(self, show: Show) -> Progress:
        """Train to the end, from the checkpoint if there is one; the best parameters are left in place.

        Raises:
            EarecError: the loss is not a number, or the processes do not see the same checkpoint.
        """
        restored = checkpoint.load(self.file, self.parameters, self.optimizer)
        if restored is not None:
            self.progress, self.best = Progress(**restored[0]), restored[1]
        state = self.progress
        if self.processes.broadcast(state.step) != state.step:
            raise EarecError(
                f"Process {self.processes.rank} goes on at step {state.step}, the first process at another.",
                "Let all processes see the same EAREC_HOME.",
            )
        if restored is not None:
            show(state.step, self.steps, "done before, going on")
        own = self.engine.record.model_dump()
        if state.engines[-1:] != [own]:
            state.engines.append(own)
        self.model.backbone.alike = self.engine.in_step
        try:
            with self.engine.around(self.model, self.parameters.values()) as self.gradients.loss:
                self._train(show)
        finally:
            self.model.backbone.alike = False
        self.gradients.loss = self.model.eval()
        for name, tensor in self.best.items():
            self.parameters[name].data.copy_(tensor)
        return state

    def _train(self, show: Show) -> None:
        state = self.progress
        if not state.history:
            self._validate()
            self._save()
        started, before, saved = time.monotonic(), state.elapsed, state.elapsed
        for batch in self._batches():
            if state.finished:
                break
            at = time.monotonic()
            losses, tokens = self._step(batch)
            state.elapsed = self.processes.broadcast(before + time.monotonic() - started)
            speed = tokens / max(time.monotonic() - at, 1e-9)
            state.step += 1
            self._record({**losses, "tokens_per_s": speed})
            said = ", ".join(f"{name.replace('_', ' ')} {loss:.3f}" for name, loss in losses.items())
            part = self._part()
            # As many steps as there will be at this rate, where the time is limited.
            show(state.step, max(state.step, round(state.step / part)), f"{said}, {speed:.0f} tokens/s")
            state.finished = part >= 1
            if state.finished or state.step % self.config.eval_every == 0:
                self._validate()
                state.finished |= state.stale >= self.config.patience
            late = state.elapsed - saved >= 60 * self.config.checkpoint_minutes
            if state.finished or late or state.step % self.config.checkpoint_every == 0:
                self._save()
                saved = state.elapsed

    def _batches(self) -> Iterator[list[Sample]]:
        state = self.progress
        while True:
            for batch in islice(self.epoch(state.epoch), state.batch, None):
                state.batch += 1
                yield batch
            state.epoch, state.batch = state.epoch + 1, 0

    def epoch(self, number: int) -> Iterator[list[Sample]]:
        """The batches of an epoch, from 0, which its number fixes."""
        size = self.config.batch_size
        if self.contrast is None:
            groups, temperature = self.groups, self.config.catalog_temperature
            return batches(
                self.train_samples, size, self.seed, number, groups=groups, temperature=temperature
            )
        assert self.alike is not None  # noqa: S101 - given with the contrast
        return paired_batches(
            self.train_samples, self.contrast.companions, self.alike, size, self.seed, number
        )

    def _part(self) -> float:
        """How much of the training is done, in steps or in time, whichever is further."""
        done = self.progress.step / self.steps
        if self.config.max_minutes is not None:
            done = max(done, self.progress.elapsed / (60 * self.config.max_minutes))
        return done

    def _step(self, batch: Sequence[Sample]) -> tuple[dict[str, float], int]:
        state, config = self.progress, self.config
        warming = state.step < self.warm_steps
        factor = schedule.factor(config.schedule, self._part(), steps=self.steps, warmup=config.warmup)
        full = (config.lr * factor, config.projector_lr * factor)
        rates = (0.0, config.projector_warmup_lr) if warming else full
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.model.train()
        # Dropout's masks follow from the step, so that a resumed run draws the same.
        torch.manual_seed(self.seed * 1_000_003 + state.step + self.processes.rank * _FAR)
        loss, pairs = self.gradients.add(batch)
        if not math.isfinite(loss + pairs):
            raise EarecError(
                f"The loss is {loss} at step {state.step + 1}.",
                "Lower align.lr or align.projector_lr; the last checkpoint is kept."
                if state.step
                else "Check the backbone's weights; with float16, use --set backbone.dtype=float32.",
            )
        self.engine.step(held=self.lora if warming else ())
        said = {"loss": loss} | ({} if self.contrast is None else {"pairs_loss": pairs})
        return said, sum(sample.length for sample in batch)

    @torch.no_grad()
    def _validate(self) -> None:
        self.model.eval()
        if not self.valid_loss_samples:
            self._keep_best(0.0)
            return
        takes_part = self.processes.first or self.engine.in_step
        point = self.processes.broadcast(self._validation() if takes_part else {})
        self._record(point)
        self._keep_best(point["valid_loss"])

    def _validation(self) -> Point:
        """Loss and ROUGE-L on validation samples."""
        size = self.config.batch_size
        ordered = sorted(self.valid_loss_samples, key=lambda s: s.length)
        tokens = sum(len(s.response) for s in ordered)
        total = sum(self.model(ordered[i : i + size]).item() for i in range(0, len(ordered), size))
        point = {"valid_loss": total / tokens}
        if self.rouge_samples:
            longest = max(len(s.response) for s in self.rouge_samples) + 4
            texts = self.model.generate([s.prompt for s in self.rouge_samples], longest)
            anchors = [self.model.prompts.anchor(s.prompt.item) or "" for s in self.rouge_samples]
            point["valid_rouge_l"] = float(rouge_l(texts, anchors).mean())
        return point

    def _keep_best(self, loss: float) -> None:
        state = self.progress
        if loss < state.best or not self.valid_loss_samples:
            state.best, state.best_step, state.stale = loss, state.step, 0
            self.best = {
                name: self.engine.value(p).to("cpu", copy=True) for name, p in self.parameters.items()
            }
        else:
            state.stale += 1

    def _record(self, point: Point) -> None:
        self.progress.history.append({"step": float(self.progress.step), **point})
        self.observe(self.progress.step, point)

    def _save(self) -> None:
        values: dict[str, Tensor] = {}
        states: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.parameters.items():
            value, state = self.engine.value(parameter), self.engine.state(parameter)
            if self.processes.first:
                values[name], states[name] = value.cpu(), {key: tensor.cpu() for key, tensor in state.items()}
        if self.processes.first:
            checkpoint.save(self.file, values, states, asdict(self.progress), self.best)
