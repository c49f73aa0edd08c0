"""What the contestants of `benchmarks/recommend.py` and `sasrec_parity.py` train on, and a run of one of them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from earec_core.catalog import Catalog, import_dataset
from earec_core.export import export_dataset
from earec_core.studies.demo.sources import movielens_100k
from earec_core.workspace import Workspace

PEERS = ("recbole", "rectools")


def prepare(folder: Path, data: Path | None) -> Catalog:
    """The data for every contestant, by the names that `recommend_worker.py` knows.

    Args:
        data: a dataset directory; None: MovieLens-100K out of RecBole's wheel, nothing filtered.
    """
    if data is None:
        movielens_100k(folder / "source", Workspace.open())
        catalog = import_dataset(
            folder / "source", folder / "catalog", name="movielens-100k", core=1, relations="none"
        )
    else:
        shutil.copytree(data, folder / "catalog")
        catalog = Catalog.open(folder / "catalog")
    export_dataset(catalog, "recbole", folder / "recbole/movielens")
    export_dataset(catalog, "rectools", folder / "rectools")
    return catalog


def train(contestant: str, folder: Path, options: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """What a contestant prints, trained by the options of `add_options` with one thread."""
    print(f"training {contestant} with seed {seed}", file=sys.stderr)
    python, environment = sys.executable, dict(os.environ)
    if contestant != "earec":
        python = str(getattr(options, contestant))
        environment.pop("PYTHONPATH", None)  # a peer has libraries of its own
    environment |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    epochs = options.recbole_epochs if contestant == "recbole" else None
    settings = {"epochs": epochs or options.epochs, "patience": options.patience, "seed": seed}
    worker = Path(__file__).with_name("recommend_worker.py")
    done = subprocess.run(
        [python, "-W", "ignore", str(worker), contestant, str(folder), json.dumps(settings)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def add_options(parser: argparse.ArgumentParser, peers: tuple[str, ...] = PEERS) -> None:
    """Options of a training, and the peers' environments."""
    for peer in peers:
        text = f"of the environment of benchmarks/{peer}-requirements.txt"
        parser.add_argument(f"--{peer}", type=Path, metavar="PYTHON", help=text)
    parser.add_argument("--data", type=Path, help="a dataset directory; default: MovieLens-100K")
    parser.add_argument("--epochs", type=int, default=300, help="of SASRec, at most")
    text = "of RecBole's, at most; default: as the others (on MovieLens-100K one takes minutes)"
    parser.add_argument("--recbole-epochs", type=int, help=text)
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better validation NDCG@10")
