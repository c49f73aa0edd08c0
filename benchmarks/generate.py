"""Texts of items: `earec explain`'s generation beside transformers' own `generate`, side by side in one process.

Both write greedily from the same prompts with the same weights, at most as many tokens. The plain script pads token
ids on the left, in batches in the order of the catalog. Texts are compared first: in bfloat16 a few differ where
two tokens are as likely, so most must be the same.

    python benchmarks/generate.py [--items 64] [--new 16] [--rounds 3] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from earec_core import processor

processor.prepare()

import torch
from workload import Workload, device_name, in_turn, load_plain, padded, run, seconds, times

from earec_core.workspace import Workspace

_SAME = 0.5
"""The least part of equal texts: a word that differs early in bfloat16 changes all behind it."""


@torch.inference_mode()
def plain(model: Any, tokenizer: Any, rows: list[list[int]], options: argparse.Namespace) -> list[str]:
    """The texts of a plain script."""
    texts: list[str] = []
    for start in range(0, len(rows), options.batch):
        ids, mask = padded(rows[start : start + options.batch], tokenizer, model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=options.new,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workload = Workload.make(folder, options.model, options.dtype, options.items)
    model, backbone = workload.model, workload.model.backbone
    prompts = [model.prompts.prompt(row) for row in range(options.items)]
    rows = [workload.ids(prompt) for prompt in prompts]
    home = Workspace.open(registry=folder / "registry")
    contestants: dict[str, Callable[[], list[str]]] = {"earec": partial(model.generate, prompts, options.new)}
    for name, dtype in (("plain_float32", torch.float32), ("plain_bf16", torch.bfloat16)):
        llm = load_plain(options.model, dtype, backbone.device, home)
        contestants[name] = partial(plain, llm, backbone.tokenizer, rows, options)
    # Before they are timed all have run once.
    texts = {name: function() for name, function in contestants.items()}
    same = {
        name: sum(a == b for a, b in zip(texts["earec"], other, strict=True)) / options.items
        for name, other in texts.items()
        if name != "earec"
    }
    if max(same.values()) < _SAME:
        raise SystemExit(f"Too few texts are those of a plain script: {same}.")
    least = in_turn(
        {name: partial(seconds, function) for name, function in contestants.items()}, options.rounds
    )
    return {
        "items": options.items,
        "new_tokens": options.new,
        "device": device_name(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **{f"same_texts_as_{name}": part for name, part in same.items()},
        "texts_per_s": options.items / least["earec"],
        **times(least),
    }


if __name__ == "__main__":
    run(__doc__, measure, {"items": 64, "new": 16, "batch": 32, "rounds": 3})
