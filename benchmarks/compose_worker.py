"""One contestant of `benchmarks/compose.py`, in a process of its own; prints its figures as JSON.

It imports the standard library and its own contestant's library, so that it also runs in mergekit's environment.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

WEIGHTS = {"behavior": 0.9, "text": 0.05, "vision": 0.05}
SVD_RANK = 16
EAREC = {
    "delta": ("delta", None),
    "delta-unmeasured": ("delta", None),
    f"delta-rank{SVD_RANK}": ("delta", SVD_RANK),
    "factor": ("factor", None),
    "delta-into-base": ("delta", None),
}
Run = Callable[[Path, Path], tuple[float, float]]
"""From the folder of the inputs and the one to write to all seconds, and those of the merge alone."""


def copy() -> Run:
    """The floor: read the adapters' tensors and write as many bytes, in buffers of the same sizes."""

    def run(root: Path, out: Path) -> tuple[float, float]:
        start = time.perf_counter()
        paths = [root / name / "adapter_model.safetensors" for name in WEIGHTS]
        files = [path.open("rb", buffering=0) for path in paths]
        length = int.from_bytes(files[0].read(8), "little")
        header = json.loads(files[0].read(length))
        header.pop("__metadata__", None)
        with out.open("wb", buffering=0) as target:
            for entry in header.values():
                begin, end = entry["data_offsets"]
                for file in files:
                    file.seek(8 + length + begin)
                    target.write(file.read(end - begin))
            os.fsync(target.fileno())
        for file in files:
            file.close()
        seconds = time.perf_counter() - start
        return seconds, seconds

    return run


def earec(contestant: str) -> Run:
    """`compose` as `earec compose` calls it, and the merge into the base where the contestant says so."""
    from earec_core.compose import Recipe, compose
    from earec_core.export.into_base import merge_into_base

    method, rank = EAREC[contestant]

    def run(root: Path, out: Path) -> tuple[float, float]:
        start = time.perf_counter()
        into_base = contestant == "delta-into-base"
        adapter = out / "adapter" if into_base else out
        parts = {name: root / name for name in WEIGHTS}
        compose(
            parts,
            Recipe(WEIGHTS, method=method, rank=rank, measure=contestant != "delta-unmeasured"),
            adapter,
        )
        merge = time.perf_counter() - start
        if into_base:
            merge_into_base(adapter, root / "base", out / "model")
        return time.perf_counter() - start, merge

    return run


def peft(combination: str) -> Run:
    """Load the base model and the adapters, `add_weighted_adapter`, save."""
    import peft
    import transformers

    def run(root: Path, out: Path) -> tuple[float, float]:
        start = time.perf_counter()
        base = transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype="auto")
        first, *others = WEIGHTS
        model = peft.PeftModel.from_pretrained(base, root / first, adapter_name=first)
        for name in others:
            model.load_adapter(root / name, adapter_name=name)
        loaded = time.perf_counter()
        # svd_full_matrices=False is the faster of PEFT's two settings, with the same result.
        extra = {"svd_rank": SVD_RANK, "svd_full_matrices": False} if combination == "svd" else {}
        model.add_weighted_adapter(
            list(WEIGHTS), list(WEIGHTS.values()), "merged", combination_type=combination, **extra
        )
        merge = time.perf_counter() - loaded
        model.save_pretrained(str(out), selected_adapters=["merged"])
        sync(out)
        return time.perf_counter() - start, merge

    return run


def mergekit() -> Run:
    """`task_arithmetic` of base+adapter models; the merge alone finds them in mergekit's cache."""
    import mergekit.config
    import mergekit.io.tasks
    import mergekit.merge
    import mergekit.options

    def run(root: Path, out: Path) -> tuple[float, float]:
        config = mergekit.config.MergeConfiguration.model_validate(
            {
                "merge_method": "task_arithmetic",
                "base_model": str(root / "base"),
                "models": [
                    {"model": f"{root / 'base'}+{root / name}", "parameters": {"weight": weight}}
                    for name, weight in WEIGHTS.items()
                ],
                "dtype": "float32",
            }
        )
        mergekit.io.tasks.LoaderCache.loaders.clear()  # it would give the run before's models
        seconds = []
        for target in (out, out.with_name(f"{out.name}-cached")):
            options = mergekit.options.MergeOptions(
                lora_merge_cache=str(out.with_name("mergekit-cache")), copy_tokenizer=False, quiet=True
            )
            start = time.perf_counter()
            mergekit.merge.run_merge(config, str(target), options)
            sync(target)
            seconds.append(time.perf_counter() - start)
        shutil.rmtree(out.with_name("mergekit-cache"))
        shutil.rmtree(out.with_name(f"{out.name}-cached"))
        return seconds[0], seconds[1]

    return run


def sync(folder: Path) -> None:
    """Wait for the disk, as earec does by itself."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def peak() -> float:
    """VmHWM of this process in MiB; getrusage's figure may start from the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def find(contestant: str) -> Run:
    """Import the contestant's library."""
    if contestant in EAREC:
        return earec(contestant)
    if contestant == "copy":
        return copy()
    return mergekit() if contestant == "mergekit" else peft(contestant.removeprefix("peft-"))


def main() -> None:
    root, contestant, repeat, started = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    run, out = find(contestant), root / "out" / contestant
    out.parent.mkdir(exist_ok=True)
    imported = peak()
    run(root, out)
    figures = {"cold": time.time() - started, "total": math.inf, "merge": math.inf}
    for _ in range(repeat):
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
        os.sync()  # the run before leaves nothing to write
        total, merge = run(root, out)
        figures = {**figures, "total": min(figures["total"], total), "merge": min(figures["merge"], merge)}
    print(json.dumps({**figures, "peak": peak(), "above": peak() - imported}))


if __name__ == "__main__":
    main()
