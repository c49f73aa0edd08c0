"""The table of `transfer.sh`, as docs/results.md has it. Usage: transfer_table.py WORK"""

import json
import sys
from pathlib import Path

MODELS = ("earec", "unisrec", "missrec")
SHARES = ("0.01", "0.05", "0.25", "1")


def figures(work: Path, name: str) -> list[str]:
    """HR@10 and NDCG@10 on the target's test targets."""
    test = json.loads((work / f"json/transfer-{name}.json").read_text())["test"]
    return [f"{test[metric]:.4f}" for metric in ("hr@10", "ndcg@10")]


def main() -> None:
    work = Path(sys.argv[1])
    print("| model | users trained on | from the source: HR@10 | NDCG@10 | from nothing: HR@10 | NDCG@10 |")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        print(f"| `{model}` | none | {' | '.join(figures(work, f'{model}-0'))} | | |")
        for share in SHARES:
            both = figures(work, f"{model}-{share}") + figures(work, f"{model}-{share}-alone")
            print(f"| | {float(share):.0%} | {' | '.join(both)} |")


main()
