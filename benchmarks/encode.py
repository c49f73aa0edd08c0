"""Encoding a catalog: `earec encode`'s loop against the plain transformers loop, side by side in one process.

Both get the same prompts; both are warmed; vectors are compared before a ratio is printed. They are timed in
turn, and of each the best round counts. The plain loop is what a script with transformers does: batches in the
catalog's order, padded on the left, a causal LM with `output_hidden_states` and its logits, the last position
kept. It runs in float32 and in bfloat16.

    python benchmarks/encode.py [--items 384] [--batch 16] [--rounds 3] [--threads 2] [--compile 1] [--json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from earec_core import processor

processor.prepare()

import numpy as np
import torch
from workload import (
    Workload,
    ceiling,
    compiled,
    device_name,
    in_turn,
    load_plain,
    padded,
    run,
    seconds,
    steps_of,
    times,
    without,
)

from earec_core.encode import item_vectors
from earec_core.llm.backbone import Backbone
from earec_core.workspace import Workspace

_ALIKE = 0.999
"""The least cosine to float32."""


@torch.inference_mode()
def plain(model: Any, tokenizer: Any, rows: list[list[int]], batch: int) -> np.ndarray:
    """The loop of a plain script."""
    vectors = []
    for start in range(0, len(rows), batch):
        ids, mask = padded(rows[start : start + batch], tokenizer, model.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        vectors.append(out.hidden_states[-1][:, -1].float().cpu().numpy())
    return np.concatenate(vectors)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least cosine of two tables' rows."""
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workload = Workload.make(folder, options.model, options.dtype, options.items)
    model, backbone = workload.model, workload.model.backbone
    prompts = [model.prompts.prompt(row) for row in range(options.items)]
    rows = [workload.ids(prompt) for prompt in prompts]
    home = Workspace.open(registry=folder / "registry")

    def own() -> np.ndarray:
        return item_vectors(model, range(options.items))

    contestants: dict[str, Callable[[], np.ndarray]] = {"earec": own}
    for name, dtype in (("plain_float32", torch.float32), ("plain_bf16", torch.bfloat16)):
        llm = load_plain(options.model, dtype, backbone.device, home)
        contestants[name] = partial(plain, llm, backbone.tokenizer, rows, options.batch)
    # Before they are timed all have run once.
    vectors = {name: function() for name, function in contestants.items()}
    alike = cosine(vectors["earec"], vectors["plain_float32"])
    if alike < _ALIKE:
        raise SystemExit(f"The vectors differ: cosine {alike}.")
    known = steps_of(backbone)
    steps = [*((step,) for step in known), known]
    timed = {name: partial(seconds, function) for name, function in contestants.items()}
    timed |= {f"without {', '.join(left)}": partial(left_out, backbone, left, own) for left in steps}
    if options.compile:
        timed["compiled"] = partial(compiled_seconds, backbone, own)
    least = in_turn(timed, options.rounds)
    prefix = len(prompts[0].pieces[0])
    positions = sum(map(len, rows)) - options.items * prefix
    rate, most = 2 * backbone.multiplied() * positions / least["earec"], ceiling(backbone, 1024)
    return {
        "items": options.items,
        "positions": sum(map(len, rows)),
        "device": device_name(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cosine_to_float32": alike,
        "items_per_s": options.items / least["earec"],
        "gflops": rate / 1e9,
        "ceiling_gflops": most / 1e9,
        "share_of_matrix_rate": rate / most,
        **times(least),
    }


def left_out(backbone: Backbone, steps: Collection[str], function: Callable[[], Any]) -> float:
    """Seconds of a run without some steps."""
    with without(backbone, steps):
        return seconds(function)


def compiled_seconds(backbone: Backbone, function: Callable[[], Any]) -> float:
    """Seconds of a run with compiled blocks, once they are."""
    with compiled(backbone):
        function()
        return seconds(function)


if __name__ == "__main__":
    run(__doc__, measure, {"items": 384, "batch": 16, "rounds": 3, "compile": 0})
