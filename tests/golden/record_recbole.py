"""Record RecBole's figures: `python -m tests.golden.record_recbole PYTHON`, from the repository's root.

PYTHON is that of an environment with RecBole (benchmarks/recbole-requirements.txt). A small data set is exported,
and RecBole reads and evaluates it (`recbole_side.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from earec_core.artifacts import ItemVectors
from earec_core.catalog import Catalog, import_dataset
from earec_core.export import export_dataset
from earec_core.files import sha256
from earec_core.workspace import Workspace
from tests.golden.record import write

HERE = Path(__file__).parent
MAX_LEN = 8
"""Shorter than many histories."""


def exported(folder: Path) -> tuple[Catalog, np.ndarray]:
    """A catalog of 80 items and 60 users, exported with vectors [80 4] to `folder/shop`.

    Sequences are of 1 to 20 items, some of them of an item that is there again. A user's next item is often one
    with a vector like the last one's, so that ranks differ. Numbers are multiples of 1/64, which are the same texts
    however they are written.
    """
    draw, items = random.Random(11), [f"i{number:02}" for number in range(80)]
    table = np.array([[round(draw.uniform(-1, 1) * 64) / 64 for _ in range(4)] for _ in items], np.float32)
    rows = []
    for user in range(60):
        last = int(draw.random() * 80)
        for _ in range(1 + int(draw.random() * 20)):
            rows.append(f"u{user:02},{items[last]},{len(rows)}")
            likely = np.argsort(-table @ table[last], kind="stable")[:10]
            last = int(likely[int(draw.random() * 10)] if draw.random() < 0.7 else draw.random() * 80)
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "items.csv").write_text("item_id,title\n" + "".join(f"{item},Item\n" for item in items))
    (source / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    catalog = import_dataset(source, folder / "data", core=1)
    registry = Workspace.open(registry=folder / "registry").registry
    kept = table[[items.index(id_) for id_ in catalog.items["item_id"]]]
    vectors = ItemVectors.save(registry, kept, catalog, name="v", why="golden", method="given")
    export_dataset(catalog, "recbole", folder / "shop", vectors=vectors, max_len=MAX_LEN)
    return catalog, kept


def figures(python: str, folder: Path) -> dict[str, Any]:
    """What RecBole makes of the exported folder, and the files' digests."""
    command = [python, "-W", "ignore", str(HERE / "recbole_side.py"), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"files": digests(folder), **json.loads(done.stdout.splitlines()[-1])}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def main() -> None:
    """Write recbole.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", metavar="PYTHON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        exported(Path(name))
        write(HERE / "recbole.json", figures(given.python, Path(name) / "shop"))


if __name__ == "__main__":
    main()
