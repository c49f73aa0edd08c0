"""Which item table and which scaling wins on validation, on every catalog, over seeds: what the defaults rest on.

Usage: item_tables.py WORK CATALOG=VECTORS ... [--seeds 3] [--only ROW ...] [--set lr=2e-3 ...]
WORK holds the catalogs' folders and `registry`. Each result is a line of WORK/item_tables.jsonl; one that is
there is not trained again. Test targets are not looked at. Prints the tables of docs/results.md.
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
Figures = dict[str, float]
LEFT_OUT = {"ndcg@10": False, "ndcg@10, history left out": True}


def done(file: Path) -> dict[Key, Figures]:
    """Validation NDCG@10, among all items and without the user's own, by catalog, variant and seed."""
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {
        (line["catalog"], line["variant"], line["seed"]): {
            kind: line[kind] for kind in LEFT_OUT if kind in line
        }
        for line in lines
    }


def measure(
    work: Path, catalog: Catalog, reference: str, variant: str, seed: int, given: dict[str, object]
) -> Figures:
    """Validation NDCG@10 of a variant, trained, by what competes."""
    settings = {**SETTINGS, **given, **VARIANTS[variant], "seed": seed}
    config = RecommenderConfig.model_validate(settings)
    split, vectors = catalog.leave_one_out(), None
    if variant != "ids":
        registry = Registry.open(work / "registry")
        vectors = torch.from_numpy(ItemVectors.open(registry, reference, catalog).vectors)
    kind = get_recommender("sasrec" if vectors is None else "earec")
    trained = train(kind, split, len(catalog), config, vectors=vectors)
    return {
        kind: evaluate(trained.model, split, "valid", exclude_seen=left_out).ndcg(10)
        for kind, left_out in LEFT_OUT.items()
    }


def table(found: dict[Key, Figures], catalogs: list[str], seeds: int, kind: str) -> list[str]:
    """Markdown of one kind of figure: a row a variant, a column a catalog."""
    lines = [f"| items | {' | '.join(catalogs)} |", "|---" * (1 + len(catalogs)) + "|"]
    for variant in VARIANTS:
        cells = [
            f"{mean(found[catalog, variant, seed][kind] for seed in range(seeds)):.4f}"
            if all(kind in found.get((catalog, variant, seed), {}) for seed in range(seeds))
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
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=VARIANTS, help="rows to train")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="settings of every row")
    options = parser.parse_args()
    given = {key: value for key, _, value in (pair.partition("=") for pair in options.set)}
    file = options.work / "item_tables.jsonl"
    for pair in options.catalogs:
        name, _, reference = pair.partition("=")
        catalog = Catalog.open(options.work / name)
        for variant in options.only or VARIANTS:
            for seed in range(options.seeds):
                if (name, variant, seed) in done(file):
                    continue
                figures = measure(options.work, catalog, reference, variant, seed, given)
                with file.open("a") as out:
                    out.write(
                        json.dumps({"catalog": name, "variant": variant, "seed": seed, **figures}) + "\n"
                    )
    names = [pair.partition("=")[0] for pair in options.catalogs]
    for kind in LEFT_OUT:
        print(f"Validation {kind}", "", *table(done(file), names, options.seeds, kind), "", sep="\n")


if __name__ == "__main__":
    main()
