"""`earec recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError


@click.group()
def command() -> None:
    """Predict a user's next item from the item vectors of `earec encode`, or from ids (SASRec)."""


@command.command()
@options.data_option
@click.option("--vectors", help="Item vectors (see `earec encode`).")
@click.option("--ids", is_flag=True, help="Use no item vectors: ids alone.")
@click.option(
    "--model",
    metavar="NAME",
    help="sasrec, earec, or one that a plugin brings.  [default: earec with --vectors, sasrec with --ids]",
)
@click.option("--name", help="What to register it as.  [default: recommender/DATASET]")
@options.config_options()
@options.session_options
@options.json_option
def train(
    data: Path,
    vectors: str | None,
    ids: bool,
    model: str | None,
    name: str | None,
    config: RunConfig,
    session: options.Session,
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
    if not as_json:
        for metric, value in recommender.training.metrics.get("test", {}).items():
            out.note(f"test {metric}: {value:.4f}")
    out.result(recommender.id, recommender.as_json(), as_json)


@command.command()
@click.argument("model")
@options.data_option
@click.option("--split", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option("--exclude-seen", is_flag=True, help="Items of the user's history do not compete.")
@options.registry_option
@options.json_option
def evaluate(
    model: str, data: Path, split: Literal["valid", "test"], exclude_seen: bool, registry: Path, as_json: bool
) -> None:
    """HR@10/50 and NDCG@10/50 of MODEL with leave-one-out and full ranking, with standard errors."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import evaluate_registered

    metrics = evaluate_registered(
        options.open_registry(registry), model, Catalog.open(data), split, exclude_seen=exclude_seen
    )
    if as_json:
        out.json(metrics.summary())
    else:
        rows = [{"metric": name, "value": value} for name, value in metrics.summary().items()]
        out.table(rows, ["metric", "value"])


@command.command()
@click.argument("model")
@options.data_option
@click.option("--user", required=True, help="A user's id in the source data.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--include-seen", is_flag=True, help="Items of the user's history may come back.")
@options.registry_option
@options.json_option
def topk(
    model: str, data: Path, user: str, k: int, include_seen: bool, registry: Path, as_json: bool
) -> None:
    """The K best next items of MODEL for a user."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import recommend_to

    rows = recommend_to(
        options.open_registry(registry), model, Catalog.open(data), user, k, exclude_seen=not include_seen
    )
    out.table(rows, ["rank", "item_id", "title", "score"], as_json)
