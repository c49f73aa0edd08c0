"""The table of `read.sh`, and five texts of each data set: the items at 10, 30, 50, 70 and 90% of their score.

Usage: read_table.py WORK
"""

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

_PLACES = (0.9, 0.7, 0.5, 0.3, 0.1)


def interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def examples(file: Path) -> list[tuple[str, str, float]]:
    """Anchor, text and ROUGE-L; ties by item id."""
    texts = pl.read_parquet(file).filter(pl.col("variant") == "aligned").sort("rouge_l", "item_id")
    rows = texts.select("anchor", "text", "rouge_l").rows()
    return [rows[round(place * (len(rows) - 1))] for place in _PLACES]


def main() -> None:
    work = Path(sys.argv[1])
    print("| data set | from | items | un-aligned | aligned | reading another item | aligned less that |")
    print("|---|---|---|---|---|---|---|")
    names = [
        file.stem.removeprefix("read-explain-") for file in sorted(work.glob("json/read-explain-*.json"))
    ]
    for name in names:
        for row in json.loads((work / "json" / f"read-explain-{name}.json").read_text()):
            cells = [interval(row, c) for c in ("unaligned", "aligned", "shuffled", "difference")]
            print(f"| {name} | {row['source']} | {row['items']} | {' | '.join(cells)} |")
    for name in names:
        print(f"\n{name}:\n\n| ROUGE-L | anchor | what the model says |\n|---|---|---|")
        for anchor, text, score in examples(work / f"{name}.parquet"):
            print(f"| {score:.2f} | {anchor} | {text} |")


if __name__ == "__main__":
    main()
