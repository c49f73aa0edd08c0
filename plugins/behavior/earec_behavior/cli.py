"""`earec behavior`: SASRec's item embeddings for a catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import data_option, json_option, open_registry, registry_option
from earec_core.cli.output import out

_RATE = click.FloatRange(0, 1, max_open=True)
_COUNT = click.IntRange(1)


@click.group(short_help="Item embeddings of a recommender, for the behavior modality.")
def command() -> None:
    """Make the item embeddings that the behavior modality reads."""


@command.command("fit", short_help="Train SASRec and register its item embeddings.")
@data_option
@click.option("--name", help="What to register them as.  [default: embeddings/DATASET]")
@click.option("--dim", type=click.IntRange(2), default=64, show_default=True, help="Width of the embeddings.")
@click.option("--layers", type=_COUNT, default=2, show_default=True)
@click.option("--heads", type=_COUNT, default=2, show_default=True, help="Must divide --dim.")
@click.option("--epochs", type=_COUNT, default=200, show_default=True, help="At most.")
@click.option(
    "--patience", type=_COUNT, default=10, show_default=True, help="Epochs without a better NDCG@10."
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True)
@click.option("--dropout", type=_RATE, default=0.5, show_default=True)
@click.option("--batch-size", type=_COUNT, default=2048, show_default=True, help="Positions per step, about.")
@click.option(
    "--max-len", type=click.IntRange(2), default=50, show_default=True, help="Items seen of a user."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@registry_option
@json_option
def fit(data: Path, name: str | None, registry: Path, as_json: bool, **options: Any) -> None:
    """Train SASRec on the training part of a dataset and register its item embeddings.

    A killed run resumes from its last epoch; a finished one is not repeated. Prints the artifact's id.
    """
    from earec_behavior.fit import fit as run
    from earec_core.catalog import Catalog

    catalog = Catalog.open(data)
    with out.progress("behavior fit") as bar:
        done = run(catalog, options, open_registry(registry), name=name, note=out.note, show=bar.update)
    if as_json:
        out.json(
            {
                "id": done.id,
                "name": done.name,
                "run": str(done.run),
                "metrics": done.metrics,
                "items": done.items,
            }
        )
    else:
        for part, metrics in done.metrics.items():
            out.note(f"{part}: HR@10 {metrics['hr@10']:.4f}, NDCG@10 {metrics['ndcg@10']:.4f}")
        out.data(done.id)
