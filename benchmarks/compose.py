"""Composition beside PEFT's `add_weighted_adapter`: `python benchmarks/compose.py`.

Three random LoRA adapters (r 16) on a random Llama of SmolLM2-135M's shape are composed at 0.05 / 0.05 / 0.9.
Every contestant runs in a process of its own: once to warm up, then `--repeat` times, best taken, from
directories on disk to a saved directory. Before any time is printed, the results are checked: `delta` equals
PEFT's `cat`, and `delta` at rank 16 is as close to the exact sum as PEFT's dense `svd`. Ratios are
PEFT / earec: above 1, earec is faster or smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HIDDEN, INTERMEDIATE, LAYERS, KEY_VALUE, RANK = 576, 1536, 30, 192, 16
WEIGHTS = {"text": 0.05, "vision": 0.05, "behavior": 0.9}
PREFIX = "base_model.model."
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
# Contestant: (arguments, the earec contestant that its ratios are taken against).
EAREC = {"delta": ("delta", None), "delta-rank16": ("delta", 16), "factor": ("factor", None)}
PEFT = {
    "peft-cat": ("cat", "delta"),
    "peft-svd": ("svd", "delta-rank16"),
    "peft-linear": ("linear", "factor"),
}


def prepare(root: Path, shared_a: bool) -> None:
    """Write the base model and the adapters, float32: PEFT stores a composite in the base's precision."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    for seed, name in enumerate(WEIGHTS):
        first, second = np.random.default_rng(0 if shared_a else seed), np.random.default_rng(100 + seed)
        tensors = {}
        for layer in range(LAYERS):
            for module, (d_out, d_in) in LINEAR.items():
                key = f"{PREFIX}model.layers.{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = first.normal(0, d_in**-0.5, (RANK, d_in)).astype(np.float32)
                tensors[f"{key}.lora_B.weight"] = second.normal(0, 0.01, (d_out, RANK)).astype(np.float32)
        (root / name).mkdir()
        save_file(tensors, root / name / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": 2 * RANK,
            "target_modules": [module.split(".")[1] for module in LINEAR],
        }
        (root / name / "adapter_config.json").write_text(json.dumps(settings))


def run_earec(root: Path, contestant: str, out: Path) -> float:
    """Compose with earec; returns the seconds between the first read and the last write."""
    from earec_core.compose import compose

    method, rank = EAREC[contestant]
    start = time.perf_counter()
    compose({name: root / name for name in WEIGHTS}, WEIGHTS, out, method=method, rank=rank)
    return time.perf_counter() - start


def run_peft(root: Path, contestant: str, out: Path) -> float:
    """Compose with PEFT; returns the seconds of `add_weighted_adapter` alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype="auto")
    names = list(WEIGHTS)
    model = PeftModel.from_pretrained(base, root / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(root / name, adapter_name=name)
    combination = PEFT[contestant][0]
    start = time.perf_counter()
    # svd_full_matrices=False is the faster of PEFT's two settings, with the same result.
    extra = {"svd_rank": RANK, "svd_full_matrices": False} if combination == "svd" else {}
    model.add_weighted_adapter(names, list(WEIGHTS.values()), "merged", combination_type=combination, **extra)
    merge = time.perf_counter() - start
    model.save_pretrained(str(out), selected_adapters=["merged"])
    return merge


def worker(root: Path, contestant: str, repeat: int) -> None:
    """Run one contestant warm and print its figures as JSON."""
    run: Callable[[Path, str, Path], float] = run_earec if contestant in EAREC else run_peft
    # Another method of the same library warms imports, page cache and threads.
    run(root, "delta" if contestant in EAREC else "peft-linear", root / "out" / f"{contestant}-warm")
    best, merge = math.inf, math.inf
    for i in range(1 if contestant == "peft-svd" else repeat):
        start = time.perf_counter()
        merge = min(
            merge, run(root, contestant, root / "out" / (contestant if i == 0 else f"{contestant}-{i}"))
        )
        best = min(best, time.perf_counter() - start)
    # VmHWM belongs to this program alone; getrusage's figure may start from the parent's.
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    print(json.dumps({"total": best, "merge": merge, "peak": int(peak.split()[1]) / 1024}))


def changes(path: Path) -> dict[str, np.ndarray]:
    """Dense dW of every module in float64."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        key: scale * tensors[key.replace("lora_A", "lora_B")].astype(np.float64) @ value.astype(np.float64)
        for key, value in tensors.items()
        if "lora_A" in key
    }


def relative_errors(root: Path, found: dict[str, Path]) -> dict[str, float]:
    """||found - exact||_F / ||exact||_F by contestant, one library's file against dense arithmetic."""
    exact: dict[str, np.ndarray] = {}
    for name, weight in WEIGHTS.items():
        for key, change in changes(root / name).items():
            exact[key] = exact.get(key, 0.0) + weight * change
    norm = math.sqrt(sum(float(np.sum(change**2)) for change in exact.values()))
    errors = {}
    for contestant, path in found.items():
        composed = changes(path)
        assert composed.keys() == exact.keys(), f"{contestant} composed other modules"
        errors[contestant] = (
            math.sqrt(sum(float(np.sum((composed[k] - exact[k]) ** 2)) for k in exact)) / norm
        )
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each contestant (svd: 1)")
    parser.add_argument("--shared-a", action="store_true", help="let all adapters share A, as from one seed")
    parser.add_argument("--skip-svd", action="store_true", help="leave out PEFT's dense SVD, the slow one")
    parser.add_argument("--worker", nargs=2, metavar=("DIR", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(Path(options.worker[0]), options.worker[1], options.repeat)
        return
    peers = {name: row for name, row in PEFT.items() if not (options.skip_svd and name == "peft-svd")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, options.shared_a)
        figures = {}
        for contestant in [*EAREC, *peers]:
            print(f"running {contestant}", file=sys.stderr)
            command = [
                sys.executable,
                __file__,
                "--repeat",
                str(options.repeat),
                "--worker",
                folder,
                contestant,
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[contestant] = json.loads(done.stdout.splitlines()[-1])
        paths = {name: root / "out" / name / ("merged" if name in PEFT else "") for name in figures}
        errors = relative_errors(root, paths)
    assert errors["delta"] < 1e-6, "delta is not the exact sum"
    assert errors["peft-cat"] < 1e-6, "PEFT's cat is not the exact sum"
    if "peft-svd" in errors:
        assert math.isclose(errors["delta-rank16"], errors["peft-svd"], rel_tol=1e-3), (
            "the truncations differ"
        )
    print("results checked: delta = cat = the exact sum; delta-rank16 as close as svd\n")
    print(f"{'':14}{'seconds':>9}{'merge s':>9}{'peak MiB':>10}{'rel. error':>12}")
    for name, row in figures.items():
        print(f"{name:14}{row['total']:9.2f}{row['merge']:9.2f}{row['peak']:10.0f}{errors[name]:12.2e}")
    print(f"\n{'PEFT / earec':30}{'seconds':>9}{'merge only':>12}{'peak memory':>13}")
    for name, (_, ours) in peers.items():
        ratios = [figures[name][key] / figures[ours][key] for key in ("total", "merge", "peak")]
        print(f"{name + ' / ' + ours:30}{ratios[0]:9.1f}{ratios[1]:12.2f}{ratios[2]:13.1f}")


if __name__ == "__main__":
    main()
