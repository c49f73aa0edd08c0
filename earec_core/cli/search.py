"""`earec search`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig, SearchConfig
from earec_core.errors import UsageError

if TYPE_CHECKING:
    from earec_core.search import SearchResult
    from earec_core.search.stage import Objective

_STRATEGY = {"step": "grid", "gradients": "learn", "per_layer": "learn"}
"""Which strategy an option belongs to."""


@click.command()
@click.argument("strategy", metavar="[grid|learn|bayes]")
@options.data_option
@options.names_option("--modalities", required=True, help="Comma-separated: those to weigh.")
@click.option(
    "--out",
    "target",
    type=options.OutFile,
    help="The file to write the weights to.  [default: weights.json in the run's folder]",
)
@click.option(
    "--objective",
    type=click.Choice(["loss", "rouge", "ndcg@10"]),
    default="loss",
    show_default=True,
    help="Alignment loss or ROUGE-L of validation items, or users' validation NDCG@10.",
)
@click.option("--step", type=click.FloatRange(0, 1, min_open=True), help="Of grid.  [default: 0.1]")
@click.option("--gradients", type=click.IntRange(1), help="How many gradients learn takes.  [default: 4]")
@click.option("--per-layer", is_flag=True, default=None, help="Learn weights for every layer of the LLM.")
@click.option("--max-evaluations", type=click.IntRange(1), help="Budget.")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Budget.")
@click.option("--max-items", type=click.IntRange(1), help="Search on a random part of the validation items.")
@click.option("--report", type=options.OutFile, help="The search's page.  [default: in the run's folder]")
@options.config_options("backbone")
@options.adapters_option
@options.allow_option
@options.session_options
@options.json_option
def command(
    strategy: str,
    objective: Objective,
    data: Path,
    modalities: list[str],
    target: Path | None,
    report: Path | None,
    config: RunConfig,
    adapters: dict[str, str],
    allow: frozenset[str],
    session: options.Session,
    as_json: bool,
    **settings: Any,
) -> None:
    """Weigh adapters side by side on one backbone, and write the best weights that STRATEGY finds to a file.

    `earec compose --weights @FILE` merges by them. Safe to interrupt: the same command goes on. Prints the
    file's path.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for option, owner in _STRATEGY.items():
        if option in given and owner != strategy:
            flag = option.replace("_", "-")
            raise UsageError(f"--{flag} belongs to the search {owner}, not to {strategy}.", "Leave it out.")

    from earec_core.catalog import Catalog
    from earec_core.compose.stage import choose_adapters
    from earec_core.compose.weighting import Weighting
    from earec_core.files import write_atomic
    from earec_core.report import write_search
    from earec_core.search import search

    limits = SearchConfig.model_validate({**config.search.model_dump(), **given})
    config = config.model_copy(update={"search": limits})
    catalog = Catalog.open(data)
    with session(f"search {strategy}") as workspace:
        chosen = choose_adapters(workspace.registry, modalities, adapters, catalog.name)
        result = search(
            workspace, catalog, chosen, config, strategy=strategy, objective=objective, allow=allow
        )
    target, report = target or result.folder / "weights.json", report or result.folder / "report.html"
    best = Weighting(
        weights=result.best.weights,
        layer_weights=result.best.layers,
        adapters={modality: workspace.registry.resolve(ref) for modality, ref in chosen.items()},
        search=result.summary(),
    )
    write_atomic(target, best.model_dump_json(indent=1) + "\n")
    write_search(result, report, title=f"Weights for {catalog.name}")
    if as_json:
        facts = {"file": target, "report": report, "run": result.folder, "caution": result.caution()}
        out.json({**facts, **best.model_dump()})
        return
    _note(result)
    out.note(f"Report: {report}")
    mismatches = [word for mismatch in sorted(allow) for word in ("--allow-mismatch", mismatch)]
    out.note(f"Next: {shlex.join(['earec', 'compose', '--weights', f'@{target}', *mismatches])}")
    out.data(str(target))


def _note(result: SearchResult) -> None:
    if not result.complete:
        out.note("The budget ended first; the same command with a larger one goes on from here.")
    weights = ",".join(f"{modality}={weight:.4g}" for modality, weight in result.best.weights.items())
    out.note(f"Best of {len(result.path)}: {weights} ({result.objective} {result.best.value:.4f}).")
    if caution := result.caution():
        out.note(caution)
