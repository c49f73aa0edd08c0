"""Encoding a catalog: `earec encode`'s loop against the plain transformers loop, side by side in one process.

Both get the same prompts; both are warmed; vectors are compared before a ratio is printed. The plain loop is what a
script with transformers does: batches in the catalog's order, padded on the left, a causal LM with
`output_hidden_states` and its logits, the last position kept. It runs in float32 and in bfloat16.

    python benchmarks/encode.py [--items 256] [--batch 16] [--repeat 3] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from workload import Workload, arithmetic, ceiling, load_plain, plain_steps, run, timed

from earec_core.encode import item_vectors
from earec_core.workspace import Workspace

_ALIKE = 0.999
"""The least cosine to float32."""


@torch.inference_mode()
def plain(model: Any, rows: list[list[int]], batch: int, padding: int) -> np.ndarray:
    """The loop of a plain script."""
    found = []
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        longest = max(map(len, chunk))
        ids = torch.tensor([[padding] * (longest - len(row)) + row for row in chunk])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in chunk])
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        found.append(out.hidden_states[-1][:, -1].float().numpy())
    return np.concatenate(found)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least cosine of two tables' rows."""
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workload = Workload.make(folder, options.model, options.dtype, options.items)
    model, backbone = workload.model, workload.model.backbone
    prompts = [model.prompts.prompt(row) for row in range(options.items)]
    rows = [workload.ids(prompt) for prompt in prompts]
    padding = backbone.tokenizer.pad_token_id or backbone.tokenizer.eos_token_id
    home = Workspace.open(registry=folder / "registry")
    seconds: dict[str, float] = {}
    expected = None
    for name, dtype in (("plain_float32", torch.float32), ("plain_bf16", torch.bfloat16)):
        llm = load_plain(options.model, dtype, home)
        repeat = options.repeat if name != "plain_float32" else 1
        vectors, seconds[name] = timed(lambda: plain(llm, rows, options.batch, padding), repeat)  # noqa: B023
        expected = vectors if expected is None else expected
    vectors, seconds["earec"] = timed(lambda: item_vectors(model, range(options.items)), options.repeat)
    assert expected is not None
    alike = cosine(vectors, expected)
    if alike < _ALIKE:
        raise SystemExit(f"The vectors differ: cosine {alike}.")
    ladder = {}
    for step, (off, on) in plain_steps(backbone).items():
        off()
        ladder[step] = timed(lambda: item_vectors(model, range(options.items)), 1)[1] / seconds["earec"]
        on()
    prefix = len(prompts[0].pieces[0])
    positions = sum(map(len, rows)) - options.items * prefix
    rate = arithmetic(backbone, positions) / seconds["earec"]
    return {
        "items": options.items,
        "positions": sum(map(len, rows)),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cosine_to_float32": alike,
        "seconds": seconds,
        "items_per_s": options.items / seconds["earec"],
        "times_plain_float32": seconds["plain_float32"] / seconds["earec"],
        "times_plain_bf16": seconds["plain_bf16"] / seconds["earec"],
        "gflops": rate / 1e9,
        "ceiling_gflops": (most := ceiling(backbone, 1024)) / 1e9,
        "share_of_matrix_rate": rate / most,
        "times_without": ladder,
    }


if __name__ == "__main__":
    run(__doc__, measure, {"items": 256, "batch": 16, "repeat": 2})
