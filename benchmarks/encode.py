"""Encoding a catalog: `earec encode`'s loop against the plain transformers loop, side by side in one process.

Both get the same prompts, the same slot embeddings and the same merged weights; both are warmed; their vectors
are compared before a ratio is printed. The plain loop is what a script with transformers does: batches in the
catalog's order, padded on the left, a causal LM with `output_hidden_states`, the last position kept.

    python benchmarks/encode.py [--items 256] [--batch 16] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from earec_core.aligned.model import AlignedModel
from earec_core.config import BackboneConfig, PromptConfig
from earec_core.encode import item_vectors
from earec_core.llm.backbone import Backbone, Spliced
from earec_core.llm.prompts import Prompt, PromptBuilder
from earec_core.types import Item, Slot
from earec_core.workspace import Reporter, Workspace


class Prompts:
    """A model whose prompts have one slot of 4 to 60 positions each, in the shape that `item_vectors` asks for."""

    def __init__(self, backbone: Backbone, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(4, 60, (n,), generator=generator).tolist()
        scale = backbone.embedding_rms
        self.backbone = backbone
        self.slots = {
            Slot("m", i): torch.randn(k, backbone.d_llm, generator=generator) * scale
            for i, k in enumerate(lengths)
        }
        builder = PromptBuilder(PromptConfig(), backbone.tokenizer, "Office Products")
        self.all = [
            builder.prompt(Item(i, str(i), "t"), lambda _: ["m"], lambda s: len(self.slots[s]))
            for i in range(n)
        ]

    @property
    def prompts(self) -> Prompts:
        return self

    def prompt(self, row: int) -> Prompt:
        return self.all[row]

    def length(self, prompt: Prompt) -> int:
        return prompt.length(lambda s: len(self.slots[s]))

    def splice(self, prompts: list[Prompt], _: object = None) -> Spliced:
        return self.backbone.splice(prompts, self.slots)

    hidden = AlignedModel.hidden


@torch.inference_mode()
def plain(one: Prompts, batch: int) -> np.ndarray:
    """The loop of a plain script."""
    backbone, rows = one.backbone, []
    for start in range(0, len(one.all), batch):
        embedded = [
            torch.cat([one.slots[p] if isinstance(p, Slot) else backbone.embed(p) for p in prompt.pieces])
            for prompt in one.all[start : start + batch]
        ]
        longest = max(map(len, embedded))
        inputs = torch.zeros(len(embedded), longest, backbone.d_llm)
        mask = torch.zeros(len(embedded), longest, dtype=torch.long)
        for i, words in enumerate(embedded):
            inputs[i, longest - len(words) :] = words
            mask[i, longest - len(words) :] = 1
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        out = backbone.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_hidden_states=True
        )
        rows.append(out.hidden_states[-1][:, -1].float().numpy())
    return np.concatenate(rows)


def timed(function: Callable[[], np.ndarray], repeat: int) -> tuple[np.ndarray, float]:
    """Result and the best of `repeat` runs after one that is not counted."""
    result, best = function(), float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - started)
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    backbone = Backbone.load(BackboneConfig(model=options.model), Workspace.open(reporter=Reporter(print)))
    one = Prompts(backbone, options.items)
    rows = range(options.items)
    expected, slow = timed(lambda: plain(one, options.batch), options.repeat)
    found, fast = timed(lambda: item_vectors(one, rows), options.repeat)
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert worst < 1e-4, f"the vectors differ by {worst}"
    print(f"{options.items} items, {backbone.dtype}, largest relative difference {worst:.1e}")
    print(f"plain transformers loop  {slow:8.2f} s   1.00")
    print(f"earec encode             {fast:8.2f} s   {slow / fast:.2f} times faster")


if __name__ == "__main__":
    main()
