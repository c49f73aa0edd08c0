"""`earec behavior`: SASRec's item embeddings for a catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import (
    Session,
    data_option,
    follow_up,
    force_option,
    json_option,
    session_options,
)
from earec_core.cli.output import out
from earec_core.errors import UsageError

_RATE = click.FloatRange(0, 1, max_open=True)
_COUNT = click.IntRange(1)
_EXAMPLES = """\b
Examples:
  earec behavior fit --data movies
  earec behavior fit --data movies --lr 0.003 --dropout 0.2 --epochs 60
"""


@click.group(short_help="Item embeddings of a recommender, for the behavior modality.")
def command() -> None:
    """Make the item embeddings that the behavior modality reads."""


@command.command("fit", short_help="Train SASRec and register its item embeddings.", epilog=_EXAMPLES)
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
@force_option
@session_options
@json_option
def fit(data: Path, name: str | None, force: bool, session: Session, as_json: bool, **options: Any) -> None:
    """Train SASRec on the training part of a dataset and register its item embeddings.

    A killed run resumes from its last epoch; a finished one is not repeated. Prints the artifact's id.
    """
    from earec_behavior.fit import fit as run
    from earec_behavior.spec import SPEC
    from earec_core.catalog import Catalog
    from earec_core.config import RecommenderConfig, validate

    if options["dim"] % options["heads"]:
        raise UsageError(
            f"--heads {options['heads']} does not divide --dim {options['dim']}.",
            "Choose heads that divide it.",
        )
    config = validate(RecommenderConfig, options, "recommender's options")
    catalog = Catalog.open(data)
    with session("behavior fit") as workspace:
        fitted = run(workspace, catalog, config, name=name, force=force)
    follow_up("align", "--modality", SPEC.name, "--data", str(data))
    metrics = fitted.training.metrics
    if as_json:
        out.json(
            {
                "id": fitted.id,
                "name": fitted.name,
                "run": str(fitted.training.run.folder),
                "metrics": metrics,
                "items": fitted.items,
            }
        )
        return
    for part, figures in metrics.items():
        out.note(f"{part}: HR@10 {figures['hr@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}")
    out.data(fitted.id)
