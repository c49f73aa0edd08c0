"""What the benchmarks of alignment, encoding and generation work on: made-up items, and the same as token ids.

A plain script sees a prompt as token ids, so the only modality is text, whose slot is the words' own embeddings.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earec_core.align.samples import build
from earec_core.aligned.build import new_model
from earec_core.aligned.model import AlignedModel
from earec_core.aligned.prompts import Sample
from earec_core.catalog.importing import import_dataset
from earec_core.config import BackboneConfig, PromptConfig
from earec_core.llm import layers
from earec_core.llm.attention import use_kernel, use_short
from earec_core.llm.backbone import Backbone
from earec_core.llm.prompts import Prompt
from earec_core.types import Slot
from earec_core.workspace import Workspace

_WORDS = (  # noqa: SIM905
    "office chair desk pen black blue steel paper printer ink storage box shelf lamp cable label cordless phone "
    "pack of refill heavy duty premium letter size filing folder holder adjustable with for classic"
).split()
_TOKENS = 60

WEIGHTS, ATTENTION, PREFIX, SIDE_BY_SIDE = (
    "frozen weights in the compute type",
    "attention for short rows",
    "prefix once a batch",
    "passes side by side",
)


def steps_of(backbone: Backbone) -> tuple[str, ...]:
    """What of how an LLM is run can be left out, to see what it brings: all but the prefix are a processor's."""
    if backbone.device.type != "cpu":
        return (PREFIX,)
    return (WEIGHTS, ATTENTION, PREFIX, *((SIDE_BY_SIDE,) if torch.get_num_threads() > 1 else ()))


@dataclass(frozen=True)
class Workload:
    """A model over made-up items.

    Attributes:
        model: text alone, LLM frozen.
        samples: a prompt and the anchor of each item.
    """

    model: AlignedModel
    samples: Sequence[Sample]

    @classmethod
    def make(cls, folder: Path, model: str, dtype: str, items: int) -> Workload:
        """Items with a title of 3 to 8 words and a text of 5 to 45, imported and read as any others."""
        draw = random.Random(0)  # noqa: S311 - no secret
        lines = [
            json.dumps(
                {
                    "item_id": f"i{row}",
                    "title": " ".join(draw.choices(_WORDS, k=draw.randint(3, 8))),
                    "description": " ".join(draw.choices(_WORDS, k=draw.randint(5, 45))),
                }
            )
            for row in range(items)
        ]
        source = folder / "source"
        source.mkdir(parents=True)
        (source / "items.jsonl").write_text("\n".join(lines))
        catalog = import_dataset(source, folder / "catalog")
        workspace = Workspace.open(registry=folder / "registry")
        backbone = Backbone.load(BackboneConfig(model=model, dtype=dtype), workspace)
        settings = {"text": {"max_tokens": _TOKENS}}
        aligned = new_model(workspace, catalog, backbone, settings, PromptConfig(), seed=0)
        return cls(aligned, build(aligned.prompts, "text", range(items)).samples)

    def ids(self, prompt: Prompt) -> list[int]:
        """A prompt as token ids."""
        inputs = self.model.inputs["text"]
        found: list[int] = []
        for piece in prompt.pieces:
            found += self._slot(inputs, piece) if isinstance(piece, Slot) else piece
        return found

    def _slot(self, inputs: Any, slot: Slot) -> list[int]:
        """The tokens whose embeddings a slot holds."""
        h, mask = inputs.projector(inputs.encoded([slot.item]))
        table = self.model.backbone.word_embedding.weight.float()
        distances = torch.cdist(h[0, mask[0]].float(), table)
        return distances.argmin(1).tolist()


def padded(rows: Sequence[Sequence[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of a batch as a plain script pads them, on the left, and the attention mask."""
    padding, longest = tokenizer.pad_token_id or tokenizer.eos_token_id, max(map(len, rows))
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@contextmanager
def without(backbone: Backbone, steps: Collection[str]) -> Iterator[None]:
    """The LLM run without some of `steps_of`; no adapter is on it when this begins or ends."""
    kinds = {layer: layer.weight.dtype for layer in _layers(backbone)}
    abilities = backbone.abilities
    if WEIGHTS in steps:
        for layer in kinds:
            layer.weight.data = layer.weight.data.float()
    if ATTENTION in steps:
        use_kernel(backbone.model)
    backbone.abilities = replace(
        abilities,
        shares_prefix=abilities.shares_prefix and PREFIX not in steps,
        side_by_side=abilities.side_by_side and SIDE_BY_SIDE not in steps,
    )
    try:
        yield
    finally:
        for layer, kind in kinds.items():
            layer.weight.data = layer.weight.data.to(kind)
        backbone.abilities = abilities
        if ATTENTION in steps:
            use_short(backbone.model)


@contextmanager
def compiled(backbone: Backbone) -> Iterator[None]:
    """The LLM's blocks compiled by `torch.compile`, for shapes that change; compiling is part of the first pass."""
    blocks = layers.blocks(backbone.model)
    torch.compiler.reset()
    for block in blocks:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def in_turn(times: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The least seconds of each contestant over rounds in which they take turns: none has the best minute alone."""
    least = dict.fromkeys(times, math.inf)
    for _ in range(rounds):
        for name, taken in times.items():
            least[name] = min(least[name], taken())
    return least


def times(least: Mapping[str, float]) -> dict[str, float]:
    """How many times as long the others take as `earec`."""
    others = {name: taken for name, taken in least.items() if name != "earec"}
    return {f"times_{name.replace(' ', '_')}": taken / least["earec"] for name, taken in others.items()}


def seconds(function: Callable[[], Any]) -> float:
    """How long a run takes."""
    started = now()
    function()
    return now() - started


def now() -> float:
    """The time, in seconds, when all that was asked for so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _layers(backbone: Backbone) -> list[nn.Linear]:
    adapted = [backbone.model.get_submodule(name) for name in backbone.linear_modules()]
    return [layer for layer in adapted if isinstance(layer, nn.Linear)]


def ceiling(backbone: Backbone, positions: int) -> float:
    """Operations a second of the layers' products alone, at their shapes and in the compute type."""
    products = [
        (torch.randn(positions, layer.in_features).to(layer.weight), layer.weight.data)
        for layer in _layers(backbone)[:7]
    ]

    def once() -> None:
        for x, weight in products:
            nn.functional.linear(x, weight)

    with torch.inference_mode():
        once()
        least = in_turn({"products": partial(seconds, once)}, 10)["products"]
    return sum(2.0 * x.shape[0] * weight.numel() for x, weight in products) / least


def device_name(device: torch.device) -> str:
    """What is measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"


def load_plain(model: str, dtype: torch.dtype, device: torch.device, home: Workspace) -> Any:
    """The LLM as a plain script loads it."""
    from transformers import AutoModelForCausalLM

    from earec_core.llm.store import folder

    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(str(folder(model, home)), dtype=dtype).eval().to(device)


def run(
    description: str | None,
    measure: Callable[[argparse.Namespace, Path], Mapping[str, Any]],
    numbers: Mapping[str, int],
) -> None:
    """A benchmark's command line: measure in a folder of its own, print a line a figure or one JSON object.

    Args:
        description: for `--help`.
        measure: gives the figures by name.
        numbers: further options that are whole numbers, with their defaults.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    for name, default in {**numbers, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Libraries that log to stdout where they are imported (DeepSpeed) do not get between the figures.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        figures = measure(options, Path(folder))
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
