"""`earec encode`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core.cli.options import (
    Session,
    config_options,
    data_option,
    json_option,
    modality_names,
    session_options,
)
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError


@click.command(short_help="Turn every item into a vector (Eq. 5).")
@click.argument("model", required=False)
@data_option
@click.option("--modalities", help="Comma-separated; default: all of the model's.")
@click.option(
    "--unaligned", is_flag=True, help="The backbone without adapter, for comparison; no MODEL then."
)
@click.option("--name", help="What to register the vectors as.  [default: vectors/DATASET]")
@config_options
@session_options
@json_option
def command(
    model: str | None,
    data: Path,
    modalities: str | None,
    unaligned: bool,
    name: str | None,
    config: RunConfig,
    session: Session,
    as_json: bool,
) -> None:
    """Encode every item of a dataset with MODEL, from whichever modalities it has. Prints the vectors' id."""
    from earec_core.catalog import Catalog
    from earec_core.encode import encode

    if unaligned == (model is not None):
        raise UsageError(
            "Exactly one of MODEL and --unaligned is needed.", "Name a model or say --unaligned."
        )
    catalog = Catalog.open(data)
    with session("encode") as workspace:
        made = encode(workspace, catalog, model, config, names=modality_names(modalities), name=name)
    manifest = made.manifest
    if as_json:
        out.json({"id": made.id, "shapes": manifest.shapes.model_dump(), "coverage": manifest.coverage})
    else:
        out.data(made.id)
