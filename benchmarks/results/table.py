"""The tables of docs/results.md from what run.sh made. Usage: table.py WORK"""

import json
import sys
from pathlib import Path

from safetensors.numpy import load_file

from earec_core.metrics.ranking import Metrics
from earec_core.metrics.statistics import paired
from earec_registry import Registry

KEYS = ("hr@10", "hr@50", "ndcg@10", "ndcg@50")


def rouge(work: Path) -> None:
    """ROUGE-L by model and source: before, after, and reading another item."""
    print(
        "| model | from | items | before alignment | aligned | reading another item |\n|---|---|---|---|---|---|"
    )
    for file in sorted(work.glob("json/explain-*.json"), key=lambda f: f.stat().st_mtime):
        for row in json.loads(file.read_text()):
            cells = [
                f"{row[v]:.3f} [{row[v + '_low']:.3f}, {row[v + '_high']:.3f}]"
                for v in ("unaligned", "aligned", "shuffled")
            ]
            model = file.stem.removeprefix("explain-")
            print(f"| {model} | {row['source']} | {row['items']} | {' | '.join(cells)} |")


def recommendation(work: Path) -> None:
    """Metrics of every recommender, and its paired difference to the one on ids."""
    registry = Registry(work / "registry")
    rows, ranks = {}, {}
    for file in sorted(work.glob("json/recommend-*.json"), key=lambda f: f.stat().st_mtime):
        name = file.stem.removeprefix("recommend-")
        rows[name] = json.loads(file.read_text())
        stored = load_file(registry.materialize(rows[name]["id"]) / "test_ranks.safetensors")
        ranks[name] = Metrics(stored["ranks"], stored["users"])
    print(f"\n| vectors | epoch | {' | '.join(k.upper() for k in KEYS)} | NDCG@10 less that of ids, paired |")
    print("|---" * 7 + "|")
    for name, row in rows.items():
        test = row["test"]
        cells = [f"{test[k]:.4f} ± {1.96 * test[k + '_se']:.4f}" for k in KEYS]
        difference = paired(ranks[name].gains(10), ranks["ids"].gains(10))
        against = (
            ""
            if name == "ids"
            else "{difference:+.4f} ± {reach:.4f} (p {p:.2g})".format(
                **difference, reach=1.96 * difference["se"]
            )
        )
        print(f"| {name} | {row['best_epoch']} of {row['epochs']} | {' | '.join(cells)} | {against} |")


if __name__ == "__main__":
    rouge(Path(sys.argv[1]))
    recommendation(Path(sys.argv[1]))
