"""`earec align`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core.cli.options import (
    PathType,
    config_options,
    data_option,
    json_option,
    open_registry,
    registry_option,
)
from earec_core.cli.output import out
from earec_core.config import RunConfig


@click.command(short_help="Stage 1: align one modality to the anchor (Eq. 3).")
@click.option("--modality", required=True, help="An installed modality (`earec plugins list`).")
@data_option
@click.option("--name", help="What to register the adapter as.  [default: MODALITY/DATASET]")
@click.option("--from", "continue_from", metavar="ADAPTER", help="Go on from this adapter, on this dataset.")
@click.option("--tensorboard", type=PathType, help="Write TensorBoard scalars under this folder.")
@click.option("--jsonl", type=PathType, help="Append every event to this file, one JSON object a line.")
@config_options
@registry_option
@json_option
def command(
    modality: str,
    data: Path,
    name: str | None,
    continue_from: str | None,
    tensorboard: Path | None,
    jsonl: Path | None,
    config: RunConfig,
    registry: Path,
    as_json: bool,
) -> None:
    """Fine-tune an adapter and a projector until the LLM says an item's anchor when shown one modality of it.

    A killed run resumes from its last checkpoint; a finished one is not repeated. Prints the adapter's id.
    """
    from earec_core import plugins
    from earec_core.align import align
    from earec_core.catalog import Catalog
    from earec_core.modality import Modality, PluginConfig
    from earec_core.plugins import observers

    # Before the backbone is loaded, which may take minutes.
    plugin = plugins.get(modality)
    plugins.part(plugin, "config", PluginConfig)
    plugins.part(plugin, "factory", Modality)
    catalog = Catalog.open(data)
    watchers = observers.manager(tensorboard, jsonl, note=out.note)
    with out.progress(f"align {modality}") as bar:
        done = align(
            catalog,
            modality,
            config,
            open_registry(registry, watchers),
            name=name,
            continue_from=continue_from,
            observers=watchers,
            note=out.note,
            show=bar.update,
        )
    if as_json:
        out.json(
            {
                "id": done.id,
                "name": done.name,
                "run": str(done.run),
                "metrics": done.metrics,
                "items": done.counts,
                "minutes": round(done.minutes, 2),
            }
        )
    else:
        for key, value in sorted(done.metrics.items()):
            out.note(f"{key}: {value:.4f}")
        out.data(done.id)
