"""EAREC's SASRec beside RecBole's by the figures that they reach, on MovieLens-100K under full ranking.

Both have RecBole's default sizes, learning rate, dropout and early stopping (on validation NDCG@10), and train on
the same split, as many times as there are seeds. EAREC predicts every position of a window at once, RecBole the
last one of every prefix: the same targets an epoch, but other steps. Prints test HR@10 and NDCG@10 of the best
epochs.

    python benchmarks/sasrec_parity.py --recbole PYTHON [--seeds 3] [--epochs 300] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from recommend_data import add_options, prepare, train

METRICS = ("hr@10", "ndcg@10")
NAMES = ("earec", "recbole")


def summary(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (0 of a single one)."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Both contestants' test figures over seeds, epochs and seconds."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        catalog = prepare(Path(folder), options.data)
        runs = {
            name: [train(name, Path(folder), options, seed) for seed in range(options.seeds)]
            for name in NAMES
        }
    found: dict[str, Any] = {"data": catalog.name, "seeds": options.seeds}
    for name, traces in runs.items():
        found[name] = {metric: summary([trace["test"][metric] for trace in traces]) for metric in METRICS}
        found[name]["epochs"] = [len(trace["valid"]) for trace in traces]
        found[name]["seconds"] = [trace["seconds"][-1] for trace in traces]
    return found


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    print(
        f"SASRec on {found['data']}, {found['seeds']} seeds, mean and standard deviation of the test figures"
    )
    for name in NAMES:
        row = found[name]
        values = "".join(f"  {m} {row[m]['mean']:.4f} ± {row[m]['deviation']:.4f}" for m in METRICS)
        each = sum(row["seconds"]) / sum(row["epochs"])
        print(f"{name:10}{values}  epochs {statistics.fmean(row['epochs']):.0f}, {each:.1f} s each")
    for metric in METRICS:
        ratio = found["earec"][metric]["mean"] / found["recbole"][metric]["mean"]
        print(f"{metric}: earec's is {ratio:.3f} of recbole's")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, ("recbole",))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for temporary files; default: the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not options.recbole:
        parser.error(
            "RecBole is absent: install benchmarks/recbole-requirements.txt elsewhere, give --recbole"
        )
    found = figures(options)
    print(json.dumps(found)) if options.json else show(found)


if __name__ == "__main__":
    main()
