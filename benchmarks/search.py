"""Finding weights: `python benchmarks/search.py --data DIR --registry DIR --config FILE --adapter M=REF ...`.

One process, one backbone, one objective (the alignment loss of the same validation items): `learn` beside the
`grid` of step 0.1, and what one more weighting costs beside loading the model. All are warmed by one evaluation.
Seconds are the processor's, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from earec_core.aligned.stored import open_model
from earec_core.catalog import Catalog
from earec_core.config import resolve
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import SearchResult, search
from earec_core.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--adapter", action="append", required=True, metavar="M=REF")
    parser.add_argument("--items", type=int, default=96, help="validation items")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    adapters = dict(pair.split("=", 1) for pair in options.adapter)
    catalog, workspace = Catalog.open(options.data), Workspace.open(registry=options.registry)
    settings = {"search.max_items": options.items, "search.step": 0.1}
    config = resolve(file=options.config, flags=settings)

    Backbone.load(config.backbone, workspace)
    started = time.perf_counter()
    backbone = Backbone.load(config.backbone, workspace)
    load = time.perf_counter() - started
    folders = {m: open_model(workspace.registry, ref).folder for m, ref in adapters.items()}
    weights = torch.rand(1000, len(folders)).softmax(-1)
    with backbone.adapted(Mixture(folders)) as mixture:
        started = time.perf_counter()
        for row in weights:
            mixture.set(row)
        weighting = (time.perf_counter() - started) / len(weights)

    def run(strategy: str, **flags: object) -> tuple[SearchResult, float]:
        started = time.process_time()
        chosen = resolve(file=options.config, flags={**settings, **flags})
        with tempfile.TemporaryDirectory() as home:
            place = Workspace.open(Path(home), options.registry)
            result = search(place, catalog, adapters, chosen, strategy=strategy, backbone=backbone)
        return result, time.process_time() - started

    run("grid", **{"search.max_evaluations": 1})
    learned, short = run("learn")
    grid, long = run("grid")
    figures = {
        "load_s": load,
        "weighting_s": weighting,
        "weighting_to_load": weighting / load,
        "learn_s": short,
        "grid_s": long,
        "learn_to_grid": short / long,
        "learn_loss": learned.best.value,
        "grid_loss": grid.best.value,
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"loading the model {load:.2f} s; one more weighting {weighting * 1e6:.0f} us: {weighting / load:.1e} of it"
    )
    for name, result, seconds in (("learn", learned, short), ("grid", grid, long)):
        best = ", ".join(f"{m} {w:.3f}" for m, w in result.best.weights.items())
        value, count = result.best.value, len(result.path)
        print(f"{name:6} {seconds:8.1f} s  loss {value:.7f}  at {best}; {count} evaluations")
    print(
        f"learn beside grid: time {short / long:.2f} of it, loss {learned.best.value - grid.best.value:+.1e}"
    )


if __name__ == "__main__":
    main()
