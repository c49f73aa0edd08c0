"""Which item table and which scaling wins on validation, on every catalog, over seeds: what the defaults rest on.

Usage: item_tables.py WORK CATALOG=VECTORS ... [--seeds 3]
WORK holds the catalogs' folders and `registry`. Each result is a line of WORK/item_tables.jsonl; one that is
there is not trained again. Test targets are not looked at. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import torch

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.recommend import evaluate, get_recommender, train
from earec_registry import Registry

SETTINGS = {"dim": 64, "dropout": 0.5, "lr": 1e-3, "batch_size": 1024, "epochs": 60, "patience": 8}
VARIANTS: dict[str, dict[str, object]] = {
    "ids": {},
    "`linear`": {"table": "linear"},
    "`moe`": {"table": "moe"},
    "`mlp`": {"table": "mlp"},
    "`linear+ids`": {"table": "linear+ids"},
    "`mlp+ids`": {"table": "mlp+ids"},
    "`mlp`, `soften`": {"table": "mlp", "scaling": "soften"},
    "`mlp`, `standardise`": {"table": "mlp", "scaling": "standardise"},
    "`mlp`, `pca`": {"table": "mlp", "scaling": "pca"},
    "`mlp`, cosine": {"table": "mlp", "similarity": "cosine"},
    "`mlp`, trained candidates": {"table": "mlp", "candidates": "trained"},
}
Key = tuple[str, str, int]


def done(file: Path) -> dict[Key, float]:
    """Validation NDCG@10 by catalog, variant and seed."""
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {(line["catalog"], line["variant"], line["seed"]): line["ndcg@10"] for line in lines}


def measure(work: Path, catalog: Catalog, reference: str, variant: str, seed: int) -> float:
    """Validation NDCG@10 of a variant, trained."""
    config = RecommenderConfig.model_validate({**SETTINGS, **VARIANTS[variant], "seed": seed})
    split, vectors = catalog.leave_one_out(), None
    if variant != "ids":
        registry = Registry.open(work / "registry")
        vectors = torch.from_numpy(ItemVectors.open(registry, reference, catalog).vectors)
    kind = get_recommender("sasrec" if vectors is None else "earec")
    trained = train(kind, split, len(catalog), config, vectors=vectors)
    return evaluate(trained.model, split, "valid").ndcg(10)


def table(found: dict[Key, float], catalogs: list[str], seeds: int) -> list[str]:
    """Markdown: a row a variant, a column a catalog."""
    lines = [f"| items | {' | '.join(catalogs)} |", "|---" * (1 + len(catalogs)) + "|"]
    for variant in VARIANTS:
        cells = [
            f"{mean(found[catalog, variant, seed] for seed in range(seeds)):.4f}"
            if all((catalog, variant, seed) in found for seed in range(seeds))
            else ""
            for catalog in catalogs
        ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    parser.add_argument("catalogs", nargs="+", metavar="CATALOG=VECTORS")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    file = options.work / "item_tables.jsonl"
    for pair in options.catalogs:
        name, _, reference = pair.partition("=")
        catalog = Catalog.open(options.work / name)
        for variant in VARIANTS:
            for seed in range(options.seeds):
                if (name, variant, seed) in done(file):
                    continue
                ndcg = measure(options.work, catalog, reference, variant, seed)
                with file.open("a") as out:
                    line = {"catalog": name, "variant": variant, "seed": seed, "ndcg@10": ndcg}
                    out.write(json.dumps(line) + "\n")
    names = [pair.partition("=")[0] for pair in options.catalogs]
    print("\n".join(table(done(file), names, options.seeds)))


if __name__ == "__main__":
    main()
