"""Importing interactions: `earec data import` beside the same in pandas, each in a process of its own.

The made-up source has a few users and items that are in most interactions, as real ones. Both read a CSV, count
repeats once, filter to the 5-core, put users in time order, leave two interactions of each out and write Parquet;
what is left must agree before a ratio is printed.

    python benchmarks/import.py [--interactions 14000000] [--relations none|auto] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

_CORE = 5


def write_source(folder: Path, n: int) -> None:
    """Items and interactions; a twelfth as many users and a hundredth as many items, by Zipf's law."""
    rng = np.random.default_rng(0)
    users, items = n // 12, max(1000, n // 100)
    table = pl.DataFrame(
        {
            "user": rng.zipf(1.2, n) % users,
            "item": rng.zipf(1.1, n) % items,
            "timestamp": rng.integers(1_300_000_000, 1_600_000_000, n),
        }
    )
    ids = [pl.format("A{}XQ", "user").alias("user_id"), pl.format("B00{}", "item").alias("item_id")]
    table.select(*ids, "timestamp").write_csv(folder / "interactions.csv")
    names = pl.DataFrame({"item": np.arange(items)})
    names.select(ids[1], pl.format("Item {}", "item").alias("title")).write_csv(folder / "items.csv")


def by_earec(source: Path, out: Path, relations: str) -> dict[str, int]:
    from earec_core.catalog.importing import import_dataset

    catalog = import_dataset(source, out, core=_CORE, relations=relations)  # type: ignore[arg-type]
    split = catalog.leave_one_out()
    return {
        "interactions": catalog.interactions.height,
        "users": len(split.train),
        "train": len(split.train.items),
    }


def by_pandas(source: Path, out: Path, _: str) -> dict[str, int]:
    import pandas as pd

    table = pd.read_csv(source / "interactions.csv", dtype={"user_id": str, "item_id": str})
    table = table.drop_duplicates(["user_id", "item_id", "timestamp"])
    while True:
        before = len(table)
        for key in ("user_id", "item_id"):
            table = table[table.groupby(key)[key].transform("size") >= _CORE]
        if len(table) == before:
            break
    for key, row in (("user_id", "user"), ("item_id", "item")):
        table[row] = pd.factorize(table[key])[0]
    table = table.sort_values(["user", "timestamp"], kind="stable")
    train = table[table.groupby("user").cumcount(ascending=False) >= 2]
    out.mkdir()
    table.to_parquet(out / "interactions.parquet")
    return {"interactions": len(table), "users": table["user"].nunique(), "train": len(train)}


def work(options: argparse.Namespace) -> None:
    """One contestant, in this process."""
    function = {"earec": by_earec, "pandas": by_pandas}[options.worker]
    started = time.perf_counter()
    counts = function(options.source, options.source.parent / options.worker, options.relations)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"counts": counts, "seconds": seconds, "peak_gib": peak}))


def measured(source: Path, worker: str, relations: str) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--worker",
        worker,
        "--source",
        str(source),
        "--relations",
        relations,
    ]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interactions", type=int, default=14_000_000)
    parser.add_argument("--relations", choices=("none", "auto"), default="none", help="pandas makes none.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("earec", "pandas"), help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        write_source(source, options.interactions)
        earec, pandas = (measured(source, worker, options.relations) for worker in ("earec", "pandas"))
    if earec["counts"] != pandas["counts"]:
        raise SystemExit(f"They differ: {earec['counts']}, pandas {pandas['counts']}.")
    found = {
        **earec["counts"],
        "seconds": earec["seconds"],
        "seconds_pandas": pandas["seconds"],
        "times_pandas": pandas["seconds"] / earec["seconds"],
        "peak_gib": earec["peak_gib"],
        "peak_gib_pandas": pandas["peak_gib"],
    }
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:16} {value:.4g}" if isinstance(value, float) else f"{key:16} {value:,}")


if __name__ == "__main__":
    main()
