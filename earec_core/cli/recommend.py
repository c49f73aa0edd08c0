"""`earec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from earec_core.cli.options import (
    Session,
    config_options,
    data_option,
    json_option,
    open_registry,
    registry_option,
    session_options,
)
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError


@click.group()
def command() -> None:
    """Predict a user's next item from the item vectors of `earec encode`, or from ids (SASRec)."""


@command.command()
@data_option
@click.option("--vectors", help="Item vectors (see `earec encode`).")
@click.option("--ids", is_flag=True, help="Use no item vectors: ids alone.")
@click.option(
    "--model",
    metavar="NAME",
    help="sasrec, earec, or one that a plugin brings.  [default: earec with --vectors, sasrec with --ids]",
)
@click.option("--name", help="What to register it as.  [default: recommender/DATASET]")
@config_options()
@session_options
@json_option
def train(
    data: Path,
    vectors: str | None,
    ids: bool,
    model: str | None,
    name: str | None,
    config: RunConfig,
    session: Session,
    as_json: bool,
) -> None:
    """Train with early stopping on validation NDCG@10 and report the test figures. Prints the id."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import train_registered

    if (ids and vectors) or not (ids or vectors or model):
        raise UsageError("Exactly one of --vectors and --ids is needed.", "Give --vectors REF or --ids.")
    catalog = Catalog.open(data)
    with session("recommend train") as workspace:
        recommender = train_registered(
            workspace, catalog, config.recommender, name=name, vectors=vectors, model=model
        )
    if as_json:
        out.json(recommender.as_json())
        return
    for key, value in recommender.training.metrics.get("test", {}).items():
        out.note(f"test {key}: {value:.4f}")
    out.data(recommender.id)


@command.command()
@click.argument("model")
@data_option
@click.option("--split", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option("--exclude-seen", is_flag=True, help="Items of the user's history do not compete.")
@registry_option
@json_option
def evaluate(
    model: str,
    data: Path,
    split: Literal["valid", "test"],
    exclude_seen: bool,
    registry: Path,
    as_json: bool,
) -> None:
    """HR@10/50 and NDCG@10/50 of MODEL with leave-one-out and full ranking, with standard errors."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import evaluate_registered

    metrics = evaluate_registered(
        open_registry(registry), model, Catalog.open(data), split, exclude_seen=exclude_seen
    )
    if as_json:
        out.json(metrics.summary())
    else:
        rows = [{"metric": name, "value": value} for name, value in metrics.summary().items()]
        out.table(rows, ["metric", "value"])


@command.command()
@click.argument("model")
@data_option
@click.option("--user", required=True, help="A user's id in the source data.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--include-seen", is_flag=True, help="Items of the user's history may come back.")
@registry_option
@json_option
def topk(
    model: str, data: Path, user: str, k: int, include_seen: bool, registry: Path, as_json: bool
) -> None:
    """The K best next items of MODEL for a user."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import recommend_to

    rows = recommend_to(
        open_registry(registry), model, Catalog.open(data), user, k, exclude_seen=not include_seen
    )
    out.table(rows, ["rank", "item_id", "title", "score"], as_json)
