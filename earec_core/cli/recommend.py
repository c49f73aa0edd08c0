"""`earec recommend`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core.cli.options import PathType, data_option, json_option, open_registry, pairs, registry_option
from earec_core.cli.output import out
from earec_core.errors import UsageError


@click.group(short_help="Train, evaluate and use the recommender (Eqs. 6-8).")
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
@click.option("--config", "file", type=PathType, help="A TOML file with a section [recommender].")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="E.g. lr=0.001, dim=128. Repeatable."
)
@registry_option
@json_option
def train(
    data: Path,
    vectors: str | None,
    ids: bool,
    model: str | None,
    name: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    registry: Path,
    as_json: bool,
) -> None:
    """Train with early stopping on validation NDCG@10 and report the test figures. Prints the id."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import recommender_config, train_registered

    if (ids and vectors) or not (ids or vectors or model):
        raise UsageError("Exactly one of --vectors and --ids is needed.", "Give --vectors REF or --ids.")
    catalog = Catalog.open(data)
    config = recommender_config(file, pairs(settings, "--set"))
    with out.progress("recommend train") as bar:
        done = train_registered(
            catalog,
            vectors,
            config,
            open_registry(registry),
            name=name or f"recommender/{catalog.name}",
            model=model,
            show=bar.update,
        )
    if as_json:
        out.json(done)
        return
    for key, value in done["test"].items():
        out.note(f"test {key}: {value:.4f}")
    out.data(done["id"])


@command.command()
@click.argument("model")
@data_option
@click.option("--split", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option("--exclude-seen", is_flag=True, help="Items of the user's history do not compete.")
@registry_option
@json_option
def evaluate(model: str, data: Path, split: str, exclude_seen: bool, registry: Path, as_json: bool) -> None:
    """HR@10/50 and NDCG@10/50 of MODEL with leave-one-out and full ranking, with standard errors."""
    from earec_core.catalog import Catalog
    from earec_core.recommend.stage import evaluate_registered

    catalog = Catalog.open(data)
    metrics = evaluate_registered(
        open_registry(registry),
        model,
        catalog,
        split,  # type: ignore[arg-type]
        exclude_seen=exclude_seen,
    )
    if as_json:
        out.json(metrics.summary())
    else:
        out.table([{"metric": k, "value": v} for k, v in metrics.summary().items()], ["metric", "value"])


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
