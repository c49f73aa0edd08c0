"""The tables of `vectors.sh`, as docs/results.md has them. Usage: vectors_table.py WORK"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = ("hr@10", "ndcg@10")


def mean(work: Path, name: str, metric: str) -> float:
    """A metric on the test targets, averaged over the seeds."""
    files = sorted(work.glob(f"json/train-{name}-?.json"))
    return sum(json.loads(file.read_text())["test"][metric] for file in files) / len(files)


def difference(row: Mapping[str, Any], metric: str) -> str:
    """A paired difference with its interval and p; nothing of the reference itself."""
    less = row.get(f"{metric}_less")
    if less is None:
        return ""
    reach = (row[f"{metric}_high"] - row[f"{metric}_low"]) / 2
    return f"{less:+.4f} ± {reach:.4f} (p {row[f'{metric}_p']:.1g})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> None:
    work = Path(sys.argv[1])
    compared = {file.stem: json.loads(file.read_text()) for file in sorted(work.glob("json/compare-*.json"))}
    rows = [
        [
            row["model"],
            *(
                f"{mean(work, row['model'], metric):.4f}"
                for metric in ("hr@10", "hr@50", "ndcg@10", "ndcg@50")
            ),
            *(difference(row, metric) for metric in METRICS),
        ]
        for row in compared.pop("compare-all")
    ]
    heads = ["HR@10", "HR@50", "NDCG@10", "NDCG@50", "HR@10 less ids", "NDCG@10 less ids"]
    table(["items", *heads], rows)
    for name, others in compared.items():
        print(f"{name.removeprefix('compare-')}, {others[0]['users']:,} users, less {others[0]['model']}:\n")
        cells = [
            [row["model"], *(f"{row[m]:.4f}" for m in METRICS), *(difference(row, m) for m in METRICS)]
            for row in others
        ]
        table(["items", "HR@10", "NDCG@10", "HR@10 less", "NDCG@10 less"], cells)
    print("Tuned:\n")
    for file in sorted(work.glob("json/tune-*.json")):
        best = json.loads(file.read_text())["best"]
        settings = ", ".join(f"{key}={value}" for key, value in best["settings"].items()) or "as given"
        print(f"- {file.stem.removeprefix('tune-')}: valid NDCG@10 {best['ndcg10']:.4f} with {settings}")


if __name__ == "__main__":
    main()
