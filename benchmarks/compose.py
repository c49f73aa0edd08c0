"""Composition beside PEFT and mergekit: `python benchmarks/compose.py`.

Three random LoRA adapters are composed at 0.9 / 0.05 / 0.05, on two shapes:

- 7B: Llama-2-7B's, r 128 on all seven linear layers, stored in `--dtype`. PEFT also loads the base model, so it is
  measured at `--peft-layers` of the 32 layers, beside earec at as many, and earec alone at all 32. `copy` reads
  the same tensors and writes as many bytes: no composition can be faster.
- 135M: SmolLM2-135M's, r 16, float32.

Every contestant runs in a process of its own with `--threads` threads: once to warm up, then `--repeat` times, best
taken, from directories on disk to a saved and synced directory. `cold` is the first run from the start of the
process, imports included: what a command costs. `delta` measures what it did, as `earec compose` does by default;
`delta-unmeasured` leaves that out (`--no-measure`), as its peers do. Before any time is printed, all results are
checked against the exact sum. Peak memory is the process's own VmHWM; `above` is what it grew by after the imports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from compose_data import Shape, adapter_change, model_change, relative_errors, write_adapters, write_base

LLAMA_7B = Shape(4096, 11008, 32, 32, 32, 32000, tied=False, rank=128)
SMOLLM_135M = Shape(576, 1536, 30, 9, 3, 49152, tied=True, rank=16)
PEERS = [
    ("peft-cat", "delta-unmeasured"),
    ("peft-cat", "delta"),
    ("peft-svd", "delta-rank16"),
    ("peft-linear", "factor"),
    ("mergekit", "delta-into-base"),
]
"""Who is compared with which contestant of earec."""
DELTA = ("delta-unmeasured", "delta")
DIFFERENT = {"factor", "peft-linear", "delta-rank16", "peft-svd"}
"""Contestants whose result is not the exact sum, by their definition."""

_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Figures:
    """One contestant's seconds and MiB, and ||found - exact||_F / ||exact||_F; NaN for `copy`."""

    cold: float
    total: float
    merge: float
    peak: float
    above: float
    written: float
    error: float = math.nan


def measure(
    root: Path, shape: Shape, contestants: list[str], options: argparse.Namespace, probes: int | None = None
) -> dict[str, Figures]:
    """Run the contestants one after the other, then check their results."""
    figures, found = {}, {}
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    for name in contestants:
        print(f"running {name} at {shape.layers} layers", file=sys.stderr)
        python = options.mergekit if name == "mergekit" else sys.executable
        repeat = 1 if name == "peft-svd" else options.repeat
        worker = Path(__file__).with_name("compose_worker.py")
        done = subprocess.run(
            [str(python), str(worker), str(root), name, str(repeat), str(time.time())],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, **_QUIET},
        )
        out = root / "out" / name
        paths = [out, *out.rglob("*")]
        written = sum(path.stat().st_size for path in paths if path.is_file()) / 2**20
        figures[name] = Figures(**json.loads(done.stdout.splitlines()[-1]), written=written)
        if name == "copy":
            out.unlink()
        elif name == "mergekit":
            found[name] = model_change(out, root / "base")
        elif name == "delta-into-base":
            found[name] = model_change(out / "model", root / "base")
        else:
            found[name] = adapter_change(out / "merged" if name.startswith("peft") else out)
    for name, error in relative_errors(root, shape, found, probes).items():
        figures[name] = replace(figures[name], error=error)
    return figures


def show(title: str, figures: dict[str, Figures]) -> None:
    """Print a table, and the ratios: above 1, earec is faster or smaller."""
    print(f"\n{title}\n")
    columns = ("cold s", "warm s", "merge s", "peak MiB", "above", "MiB written", "rel. error")
    print(f"{'':16}" + "".join(f"{column:>12}" for column in columns))
    for name, row in figures.items():
        error = "-" if math.isnan(row.error) else f"{row.error:.1e}"
        print(
            f"{name:16}{row.cold:12.2f}{row.total:12.2f}{row.merge:12.2f}{row.peak:12.0f}{row.above:12.0f}"
            f"{row.written:12.0f}{error:>12}"
        )
    print(f"\n{'ratio':28}{'cold':>9}{'warm':>9}{'merge only':>12}{'peak memory':>13}{'above':>9}")
    floor = [(name, "copy") for name in ("delta-unmeasured", "delta")]
    for first, second in [*floor, *PEERS]:
        if first not in figures or second not in figures:
            continue
        a, b = figures[first], figures[second]
        ratios = (a.cold / b.cold, a.total / b.total, a.merge / b.merge, a.peak / b.peak, a.above / b.above)
        row = f"{f'{first} / {second}':28}{ratios[0]:9.2f}{ratios[1]:9.2f}"
        print(row if second == "copy" else f"{row}{ratios[2]:12.2f}{ratios[3]:13.1f}{ratios[4]:9.1f}")


def check(figures: dict[str, Figures], tolerance: float) -> None:
    """Stop unless every exact method gave the exact sum, and both truncations are equally close to it."""
    for name, row in figures.items():
        if name not in DIFFERENT and name != "copy":
            assert row.error < tolerance, f"{name} is not the exact sum: {row.error}"
    if "peft-svd" in figures:
        ours, theirs = figures["delta-rank16"].error, figures["peft-svd"].error
        assert math.isclose(ours, theirs, rel_tol=1e-3), f"the truncations differ: {ours}, {theirs}"


def run_7b(folder: Path, options: argparse.Namespace) -> None:
    """The 7B shape: earec alone at all layers, then beside PEFT."""
    dtype = getattr(torch, options.dtype)
    # Rounding A or B to bfloat16 moves dW by up to 2^-9 of each term; PEFT rounds in the base's precision.
    tolerance = 4e-3 if options.dtype == "bfloat16" else 1e-6
    every = [
        (LLAMA_7B, ["copy", *DELTA]),
        (replace(LLAMA_7B, layers=options.peft_layers), ["copy", *DELTA, "peft-cat"]),
    ]
    for shape, contestants in every:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root = Path(name)
            write_adapters(root, shape, dtype, options.shared_a)
            if "peft-cat" in contestants:
                write_base(root / "base", shape, dtype)
            figures = measure(root, shape, contestants, options, probes=8)
        check(figures, tolerance)
        title = f"7B shape, r 128, {options.dtype}, {shape.layers} of 32 layers"
        if "peft-cat" in contestants and shape.layers < LLAMA_7B.layers:
            title += " (as PEFT needs the base model; --peft-layers sets it)"
        show(f"{title}; results equal, by 8 random vectors per module", figures)


def run_135m(folder: Path, options: argparse.Namespace) -> None:
    """The 135M shape: every peer."""
    contestants = [
        *DELTA,
        "peft-cat",
        "delta-rank16",
        "peft-svd",
        "factor",
        "peft-linear",
        "delta-into-base",
    ]
    if options.skip_svd:
        contestants.remove("peft-svd")
    if options.mergekit:
        contestants.append("mergekit")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        write_adapters(root, SMOLLM_135M, torch.float32, options.shared_a)
        write_base(root / "base", SMOLLM_135M, torch.float32)
        figures = measure(root, SMOLLM_135M, contestants, options)
    check(figures, 1e-5)
    show(
        "135M shape, r 16, float32; results checked densely: exact but for factor, svd, linear, rank16",
        figures,
    )
    if not options.mergekit:
        print(
            "mergekit: absent. Install benchmarks/mergekit-requirements.txt elsewhere, give --mergekit PYTHON."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("7b", "135m"), help="one shape alone")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each contestant (svd: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the 7B shape"
    )
    parser.add_argument("--peft-layers", type=int, default=8, help="layers of the 7B shape beside PEFT")
    parser.add_argument(
        "--mergekit", type=Path, metavar="PYTHON", help="of the environment that has mergekit"
    )
    parser.add_argument("--shared-a", action="store_true", help="let all adapters share A, as from one seed")
    parser.add_argument("--skip-svd", action="store_true", help="leave out PEFT's dense SVD, the slow one")
    parser.add_argument("--folder", type=Path, help="for temporary files, about 12 GB; default: the system's")
    options = parser.parse_args()
    if options.only != "135m":
        run_7b(options.folder, options)
    if options.only != "7b":
        run_135m(options.folder, options)


if __name__ == "__main__":
    main()
