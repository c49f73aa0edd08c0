"""`earec align`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from earec_core.cli.options import (
    PathType,
    Session,
    config_options,
    follow_up,
    follow_up_without,
    force_option,
    json_option,
    session_options,
)
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError

if TYPE_CHECKING:
    from earec_core.align import Alignment
    from earec_core.align.job import Job


@click.command()
@click.option("--modality", required=True, help="An installed modality (`earec plugins list`).")
@click.option(
    "--data",
    type=PathType,
    required=True,
    multiple=True,
    help="A dataset directory (see `earec data import`); several are joined.",
)
@click.option("--name", help="What to register the adapter as.  [default: MODALITY/DATASET]")
@click.option("--from", "continue_from", metavar="ADAPTER", help="Go on from this adapter, on this dataset.")
@click.option(
    "--plan", is_flag=True, help="Say what it would do and cost, from ten seconds of trying; no training."
)
@click.option(
    "--show-samples",
    type=click.IntRange(1),
    metavar="N",
    help="Print N training samples as the LLM reads them; no training.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Train in so many, each with a GPU if there are any.",
)
@click.option("--engine", type=click.Choice(["torch", "deepspeed"]), help="What trains.  [default: torch]")
@force_option
@config_options("preset", "backbone")
@session_options
@json_option
def command(
    modality: str,
    data: tuple[Path, ...],
    name: str | None,
    continue_from: str | None,
    plan: bool,
    show_samples: int | None,
    processes: int | None,
    engine: Literal["torch", "deepspeed"] | None,
    force: bool,
    config: RunConfig,
    session: Session,
    as_json: bool,
) -> int | None:
    """Fine-tune an adapter and a projector until the LLM says an item's anchor when shown one modality of it.

    Of several datasets each has a part of size^(1/T) in an epoch (align.catalog_temperature), and the adapter is
    named after them all. A killed run resumes from its last checkpoint; a finished one is not repeated. Prints the
    adapter's id.
    """
    from earec_core import plugins
    from earec_core.align import align, open_job
    from earec_core.catalog import Catalog
    from earec_core.catalog.joining import join_once
    from earec_core.modality import Modality, PluginConfig
    from earec_core.train.engine import engine_of
    from earec_core.train.processes import is_first, launch

    if engine:
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"name": engine})})
    engine_of(config.engine)
    ahead = plan or show_samples is not None
    if _are_to_start(processes) and not ahead:
        return launch(processes or 1, click.get_current_context().meta["earec.arguments"])
    # Before the backbone is loaded, which may take minutes.
    plugin = plugins.get(modality)
    plugins.part(plugin, "config", PluginConfig)
    plugins.part(plugin, "factory", Modality)
    catalogs = [Catalog.open(path) for path in data]
    with session(f"align {modality}") as workspace:
        several = len(catalogs) > 1
        catalog = join_once(catalogs, workspace.home / "cache" / "joined") if several else catalogs[0]
        if ahead:
            job = open_job(workspace, catalog, modality, config, continue_from=continue_from)
            _look_ahead(job, show_samples or 0, (processes or 1) if plan else 0, as_json)
            follow_up_without("--plan", "--show-samples")
            return None
        aligned = align(
            workspace, catalog, modality, config, name=name, continue_from=continue_from, force=force
        )
    if not is_first():
        return None
    if not as_json:
        for metric, value in sorted(aligned.metrics.items()):
            out.note(f"{metric}: {value:.4f}")
    if not several:
        shared = ("--registry", "--backbone", "--config", "--set", "--preset")
        follow_up("explain", aligned.name, "--data", str(data[0]), along=shared)
    out.result(aligned.id, _facts(aligned), as_json)
    return None


def _facts(aligned: Alignment) -> dict[str, Any]:
    """An alignment as JSON has it."""
    return {
        "id": aligned.id,
        "name": aligned.name,
        "run": str(aligned.run),
        "metrics": aligned.metrics,
        "items": aligned.counts,
        "minutes": round(aligned.minutes, 2),
    }


def _are_to_start(processes: int | None) -> bool:
    """Whether so many processes are asked for that no launcher has started.

    Raises:
        UsageError: one has started another number.
    """
    from earec_core.train.processes import started

    there = started()
    if processes and there is not None and there != processes:
        raise UsageError(
            f"--processes is {processes}, but the launcher has started {there}.",
            "Leave --processes out.",
        )
    return processes is not None and processes > 1 and there is None


def _look_ahead(job: Job, number: int, processes: int, as_json: bool) -> None:
    """Write so many samples of an alignment, and what it would cost in so many processes; nothing is trained."""
    from earec_core.align import plan, shown

    train, valid, items = job.samples()
    facts: dict[str, Any] = {}
    lines: list[str] = []
    if number:
        facts["samples"] = shown(job.model, train[:number])
        lines += [line for sample in facts["samples"] for line in _said(sample)]
    if processes:
        planned = plan(job, train, valid, items, processes)
        facts["plan"] = planned.facts()
        lines += planned.lines()
    out.facts(lines, facts, as_json)


def _said(sample: Mapping[str, Any]) -> list[str]:
    """A sample, a piece a line."""
    lines = [f"item {sample['item']}: {sample['positions']} positions"]
    for piece in sample["pieces"]:
        of = f"{piece['modality']} of {piece['item']}" if "modality" in piece else repr(piece["words"])
        lines.append(f"{piece['positions']:>6}  {of}")
    return [*lines, f"{sample['loss']['positions']:>6}  loss: {sample['loss']['words']!r}"]
