"""Texts of items: `earec explain`'s generation beside transformers' own `generate`, side by side in one process.

Both write greedily from the same prompts with the same weights, at most as many tokens. The plain script pads token
ids on the left, in batches in the order of the catalog. Texts are compared first: in bfloat16 a few differ where
two tokens are as likely, so most must be the same.

    python benchmarks/generate.py [--items 96] [--new 24] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from workload import Workload, load_plain, run, timed

from earec_core.workspace import Workspace

_SAME = 0.5
"""The least part of equal texts."""


@torch.inference_mode()
def plain(model: Any, tokenizer: Any, rows: list[list[int]], options: argparse.Namespace) -> list[str]:
    """The texts of a plain script."""
    padding, texts = tokenizer.pad_token_id or tokenizer.eos_token_id, []
    for start in range(0, len(rows), options.batch):
        chunk = rows[start : start + options.batch]
        longest = max(map(len, chunk))
        ids = torch.tensor([[padding] * (longest - len(row)) + row for row in chunk])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in chunk])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=options.new,
            do_sample=False,
            pad_token_id=padding,
        )
        texts += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workload = Workload.make(folder, options.model, options.dtype, options.items)
    model, backbone = workload.model, workload.model.backbone
    prompts = [model.prompts.prompt(row) for row in range(options.items)]
    rows = [workload.ids(prompt) for prompt in prompts]
    home = Workspace.open(registry=folder / "registry")
    seconds: dict[str, float] = {}
    texts, seconds["earec"] = timed(lambda: model.generate(prompts, options.new), options.repeat)
    same = 0.0
    for name, dtype in (("plain_float32", torch.float32), ("plain_bf16", torch.bfloat16)):
        llm = load_plain(options.model, dtype, home)
        expected, seconds[name] = timed(
            lambda: plain(llm, backbone.tokenizer, rows, options),  # noqa: B023
            options.repeat,
        )
        same = max(same, sum(a == b for a, b in zip(texts, expected, strict=True)) / len(texts))
    if same < _SAME:
        raise SystemExit(f"Only {same:.0%} of the texts are those of a plain script.")
    return {
        "items": options.items,
        "new_tokens": options.new,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "same_texts": same,
        "seconds": seconds,
        "texts_per_s": options.items / seconds["earec"],
        "times_plain_float32": seconds["plain_float32"] / seconds["earec"],
        "times_plain_bf16": seconds["plain_bf16"] / seconds["earec"],
    }


if __name__ == "__main__":
    run(__doc__, measure, {"items": 96, "new": 24, "batch": 32, "repeat": 1})
