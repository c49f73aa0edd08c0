"""A training step of stage 1: earec's against Hugging Face's Trainer with PEFT, side by side in one process.

Both train LoRA of the same rank on the same samples in the same order and batches, in bfloat16 where the processor
has it; the loss on held-back samples must agree to 1% before a ratio is printed. The Trainer is set up as a user
would: `bf16`, a collator that pads, full logits. Rates count the tokens of prompts and anchors, not padding. All
are timed in turn, the first step of each left out, and of each the best round counts.

    python benchmarks/align.py [--steps 5] [--batch 16] [--rounds 3] [--threads 2] [--compile 1] [--json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from earec_core import processor

processor.prepare()

import torch
from torch import Tensor
from workload import (
    Workload,
    ceiling,
    compiled,
    device_name,
    in_turn,
    load_plain,
    now,
    run,
    steps_of,
    times,
    without,
)

from earec_core.align.samples import batches
from earec_core.align.train import Trainer
from earec_core.aligned.prompts import Sample
from earec_core.config import AlignConfig, LoraSettings
from earec_core.llm.lora import TrainableLora
from earec_core.workspace import Workspace

ONE_STEP = "LoRA in one step"
_LR, _HELD = 1e-3, 32
_ALIKE = 0.01
"""How far the validation losses may be apart, relatively."""


def batched(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Samples in their order."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def own(
    workload: Workload,
    train: Sequence[Sample],
    held: Sequence[Sample],
    size: int,
    *,
    left: Collection[str] = (),
    compile_blocks: bool = False,
) -> tuple[float, float]:
    """Validation loss and seconds of earec's steps, some ways of saving time left out."""
    model, backbone = workload.model, workload.model.backbone
    with (
        without(backbone, left),
        backbone.adapted(TrainableLora(LoraSettings())) as adapter,
        compiled(backbone) if compile_blocks else nullcontext(),
    ):
        for module in backbone.model.modules() if ONE_STEP in left else ():
            module.__dict__.pop("forward", None)  # PEFT's layers compute LoRA then
        config = AlignConfig(batch_size=size, lr=_LR, weight_decay=0.0, clip=1.0)
        trainer = Trainer(model, adapter.parameters, train, held, config, Path(), lambda *_: None)
        model.train()
        taken = 0.0
        for batch in batched(train, size) if compile_blocks else ():
            trainer.gradients.add(batch)  # a shape that is new compiles again
        trainer.optimizer.zero_grad()
        for k, batch in enumerate(batched(train, size)):
            started = now()
            trainer.gradients.add(batch)
            trainer.engine.step()
            taken += now() - started if k else 0.0  # the first step warms up
        model.eval()
        with torch.no_grad():
            total = sum(model(batch).item() for batch in batched(held, size))
        return total / sum(len(sample.response) for sample in held), taken


def rows_of(workload: Workload, samples: Sequence[Sample]) -> list[dict[str, list[int]]]:
    """Samples as a plain script has them."""
    rows = []
    for sample in samples:
        prompt = workload.ids(sample.prompt)
        rows.append(
            {"input_ids": [*prompt, *sample.response], "labels": [-100] * len(prompt) + list(sample.response)}
        )
    return rows


def plain_trainer(
    options: argparse.Namespace,
    device: torch.device,
    train: list[dict[str, list[int]]],
    held: list[dict[str, list[int]]],
    folder: Path,
) -> tuple[float, float]:
    """Validation loss and seconds of the Trainer's steps."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    home = Workspace.open(registry=folder / "registry")
    llm = load_plain(options.model, torch.float32, device, home)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraSettings()
    torch.manual_seed(settings.seed)
    llm = get_peft_model(llm, LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=names))

    def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        filled = {"input_ids": 0, "labels": -100}
        batch = {
            key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
            for key, value in filled.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**batch, "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long()}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(train)

    class Clock(TrainerCallback):
        started, seconds = 0.0, []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(now() - self.started)

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=options.batch,
        num_train_epochs=1,
        learning_rate=_LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=options.bf16,
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    training = InOrder(llm, arguments, collate, train, callbacks=[clock])
    training.remove_callback(PrinterCallback)  # stdout is for the figures
    training.train()
    llm.eval()
    total = tokens = 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        for start in range(0, len(held), options.batch):
            chunk = held[start : start + options.batch]
            n = sum(label >= 0 for row in chunk for label in row["labels"])
            batch = {name: tensor.to(device) for name, tensor in collate(chunk).items()}
            total, tokens = total + llm(**batch).loss.item() * n, tokens + n
    return total / tokens, sum(clock.seconds[1:])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    items = options.steps * options.batch
    workload = Workload.make(folder, options.model, options.dtype, items + _HELD)
    backbone = workload.model.backbone
    options.bf16 = backbone.dtype == torch.bfloat16
    # Both train on the batches that `earec align` makes: of similar length.
    train = [sample for batch in batches(workload.samples[:items], options.batch, 0, 0) for sample in batch]
    held = workload.samples[items:]
    rows = rows_of(workload, train), rows_of(workload, held)
    losses: dict[str, float] = {}

    def timed(name: str, train_it: Callable[[], tuple[float, float]]) -> float:
        losses[name], taken = train_it()
        return taken

    rival = "trainer_bf16" if options.bf16 else "trainer_float32"
    ours = partial(own, workload, train, held, options.batch)
    contestants = {"earec": ours, rival: partial(plain_trainer, options, backbone.device, *rows, folder)}
    steps = (ONE_STEP, *steps_of(backbone))
    for left in (*((step,) for step in steps), steps):
        contestants[f"without {', '.join(left)}"] = partial(ours, left=left)
    if options.compile:
        contestants["compiled"] = partial(ours, compile_blocks=True)
    least = in_turn(
        {name: partial(timed, name, run_it) for name, run_it in contestants.items()}, options.rounds
    )
    if abs(losses["earec"] / losses[rival] - 1) > _ALIKE:
        raise SystemExit(f"The validation losses differ: {losses}.")
    counted = train[options.batch :]
    tokens, prefix = sum(sample.length for sample in counted), len(train[0].prompt.pieces[0])
    positions = tokens - prefix * (len(counted) - options.steps + 1)
    # Forward, and back to the inputs: weights are frozen.
    rate, most = 4 * backbone.multiplied() * positions / least["earec"], ceiling(backbone, 1024)
    return {
        "steps": options.steps - 1,
        "tokens": tokens,
        "device": device_name(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "valid_loss": losses["earec"],
        "valid_loss_trainer": losses[rival],
        "tokens_per_s": tokens / least["earec"],
        "gflops": rate / 1e9,
        "ceiling_gflops": most / 1e9,
        "share_of_matrix_rate": rate / most,
        **times(least),
    }


if __name__ == "__main__":
    run(__doc__, measure, {"steps": 5, "batch": 16, "rounds": 3, "compile": 0})
