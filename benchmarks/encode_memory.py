"""Memory of encoding: the peak of a process that encodes a small catalog, and of one that encodes a large one.

Made-up items of a few letters go through a tiny LLM without adapter, each catalog in a process of its own. The peak
is what the operating system says of that process, mapped files included; `loaded_mib` is that of the libraries and
the LLM alone.

    python benchmarks/encode_memory.py [--items 100000] [--times 10] [--engine local] [--json]
"""

from __future__ import annotations

# What this process has in memory counts as its children's when they start: nothing large is imported here.
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_LETTERS = 7


def peak_mib() -> float:
    """This process's, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def make(folder: Path, n: int) -> None:
    """A dataset directory of n items and, once, the LLM."""
    import numpy as np
    import polars as pl

    from earec_core.catalog import import_dataset
    from earec_core.testing import tiny_backbone

    source = folder / f"source{n}"
    source.mkdir()
    order = np.random.default_rng(0).permutation(n)
    pl.DataFrame({"item": np.arange(n), "text": order}).select(
        pl.format("A{}XQ", "item").alias("item_id"),
        pl.format("Item {}", "item").alias("title"),
        pl.col("text").cast(pl.String).str.zfill(_LETTERS).alias("description"),
    ).write_csv(source / "items.csv")
    import_dataset(source, folder / f"data{n}")
    if not (folder / "llm").exists():
        tiny_backbone(folder / "llm")


def encoded(folder: Path, n: int, engine: str) -> dict[str, float]:
    """Figures of encoding the catalog of n items; of n = 0, of having loaded all that it takes."""
    from earec_core.catalog import Catalog
    from earec_core.config import resolve
    from earec_core.encode import encode
    from earec_core.llm.backbone import Backbone
    from earec_core.workspace import Workspace

    settings = {"backbone.model": str(folder / "llm"), "prompt.item": "{item}", "prompt.request": "Say it."}
    config = resolve(flags={**settings, "encode.batch_tokens": 8192, "text.max_tokens": _LETTERS})
    if not n:
        Backbone.load(config.backbone)
        return {"peak_mib": peak_mib()}
    workspace, catalog = Workspace.open(folder / f"home{n}"), Catalog.open(folder / f"data{n}")
    started = time.perf_counter()
    vectors = encode(workspace, catalog, None, config, names=["text"], engine=engine)
    seconds = time.perf_counter() - started
    return {
        "peak_mib": peak_mib(),
        "seconds": seconds,
        "table_mib": vectors.vectors.nbytes / 2**20,
        "items_mib": (catalog.path / "items.parquet").stat().st_size / 2**20,
    }


def in_process(work: str, folder: Path, n: int, engine: str) -> dict[str, float]:
    """What a step prints, in a process of its own."""
    command = [sys.executable, __file__, "--work", work, "--folder", str(folder), "--engine", engine]
    done = subprocess.run([*command, "--items", str(n)], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(small: int, times: int, engine: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder, large = Path(name), small * times
        for n in (small, large):
            in_process("make", folder, n, engine)
        loaded = in_process("encode", folder, 0, engine)
        found = {n: in_process("encode", folder, n, engine) for n in (small, large)}
    return {
        "loaded_mib": loaded["peak_mib"],
        **{f"{key}_{n}": value for n, figures in found.items() for key, value in figures.items()},
        "times_peak": found[large]["peak_mib"] / found[small]["peak_mib"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="Of the small catalog.")
    parser.add_argument("--times", type=int, default=10, help="As many in the large one.")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", choices=("make", "encode"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work == "make":
        make(options.folder, options.items)
        print("{}")
    elif options.work:
        print(json.dumps(encoded(options.folder, options.items, options.engine)))
    else:
        found = measured(options.items, options.times, options.engine)
        if options.json:
            print(json.dumps(found))
            return
        for key, value in found.items():
            print(f"{key:20} {value:.4g}")


if __name__ == "__main__":
    main()
