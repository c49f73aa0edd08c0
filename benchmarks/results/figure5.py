"""ROUGE-L against HR@10 of `figure5.sh`'s adapters, and their correlation. Usage: figure5.py WORK"""

import json
import sys
from pathlib import Path
from statistics import mean

from scipy.stats import pearsonr, spearmanr

METRICS = ("hr@10", "ndcg@10")


def main() -> None:
    work = Path(sys.argv[1]) / "json"
    rows = []
    for file in sorted(work.glob("figure5-explain-*.json")):
        name = file.stem.removeprefix("figure5-explain-")
        trained = [
            json.loads(f.read_text())["test"] for f in sorted(work.glob(f"figure5-train-{name}-?.json"))
        ]
        explained = next(row for row in json.loads(file.read_text()) if row["source"] == "text")
        rows.append((name, explained["aligned"], *(mean(t[m] for t in trained) for m in METRICS)))
    rows.sort(key=lambda row: row[1])
    print("| adapter | ROUGE-L | HR@10 | NDCG@10 |\n|---|---|---|---|")
    for name, rouge, hr, ndcg in rows:
        print(f"| {name} | {rouge:.3f} | {hr:.4f} | {ndcg:.4f} |")
    rouges = [row[1] for row in rows]
    for place, metric in enumerate(METRICS, start=2):
        figures = [row[place] for row in rows]
        r, rho = pearsonr(rouges, figures), spearmanr(rouges, figures)
        low, high = r.confidence_interval()
        print(
            f"\nROUGE-L and {metric} over {len(rows)} adapters: r {r.statistic:.2f} [{low:.2f}, {high:.2f}], "
            f"p {r.pvalue:.2g}; rank correlation {rho.statistic:.2f}, p {rho.pvalue:.2g}."
        )


if __name__ == "__main__":
    main()
