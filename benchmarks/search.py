"""Finding weights: `python benchmarks/search.py --data DIR --registry DIR --config FILE --adapter M=REF ...`.

One process, one backbone, one objective (the alignment loss of the same validation items): `learn` beside the
`grid` of step 0.1, and what one more weighting costs beside loading the model. All are warmed by one evaluation.
Seconds are the processor's, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from earec_core.search.learn import Descent

from earec_core.aligned.stored import StoredModel
from earec_core.catalog import Catalog
from earec_core.config import resolve
from earec_core.llm.backbone import Backbone
from earec_core.llm.lora import Mixture
from earec_core.search import Found, search
from earec_registry import Registry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--adapter", action="append", required=True, metavar="M=REF")
    parser.add_argument("--items", type=int, default=96, help="validation items")
    options = parser.parse_args()
    config, registry = resolve(file=options.config), Registry(options.registry)
    adapters = dict(pair.split("=", 1) for pair in options.adapter)
    catalog = Catalog.open(options.data)

    Backbone.load(config.backbone)
    started = time.perf_counter()
    backbone = Backbone.load(config.backbone)
    load = time.perf_counter() - started
    folders = {m: StoredModel.open(registry, ref).folder for m, ref in adapters.items()}
    weights = torch.rand(1000, len(folders)).softmax(-1)
    with backbone.adapted(Mixture(folders)) as mixture:
        started = time.perf_counter()
        for row in weights:
            mixture.set(row)
        weighting = (time.perf_counter() - started) / len(weights)
    print(
        f"loading the model {load:.2f} s; one more weighting {weighting * 1e6:.0f} us: {weighting / load:.1e} of it"
    )

    def run(strategy: str, **more: object) -> tuple[Found, float]:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as runs:
            os.environ["EAREC_HOME"] = runs
            found = search(
                catalog,
                adapters,
                config,
                registry,
                strategy=strategy,
                objective="loss",
                max_items=options.items,
                backbone=backbone,
                **more,  # type: ignore[arg-type]
            )
        return found, time.process_time() - started

    run("grid", max_evaluations=1)
    (learned, short), (walked, long) = run("learn", descent=Descent()), run("grid", step=0.1)
    for name, found, seconds in (("learn", learned, short), ("grid", walked, long)):
        said = ", ".join(f"{m} {w:.3f}" for m, w in found.best.weights.items())
        print(
            f"{name:6} {seconds:8.1f} s  loss {found.best.value:.7f}  at {said}; {len(found.path)} evaluations"
        )
    print(
        f"learn beside grid: time {short / long:.2f} of it, loss {learned.best.value - walked.best.value:+.1e}"
    )


if __name__ == "__main__":
    main()
