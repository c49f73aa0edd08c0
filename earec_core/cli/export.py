"""`earec export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError

if TYPE_CHECKING:
    from earec_core.export import Form


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--as",
    "form",
    type=click.Choice(["peft", "hub", "mergekit", "merged"]),
    help="A plain PEFT directory, one for the Hugging Face hub with a model card, a recipe that mergekit runs, "
    "or the base model with the composite in it.",
)
@click.option(
    "--out",
    "target",
    required=True,
    type=options.PathType,
    help="A new directory; of vectors a file: .parquet, .npy or .faiss.",
)
@click.option(
    "--backbone",
    help="The base model: a named LLM, a local directory or a hub id.  [default: the one recorded]",
)
@options.index_option
@options.scaling_option
@options.registry_option
@options.json_option
def command(
    reference: str,
    form: Form | None,
    target: Path,
    backbone: str | None,
    index: str,
    scaling: str,
    registry: Path,
    as_json: bool,
) -> None:
    """Write the composite REF to a directory that needs no EAREC, or item vectors to a file. Prints its path.

    REF may be an adapter, too, --as peft, hub or merged. Of vectors, the ending of --out says what is written.
    """
    from earec_core.export import check_vectors_file, export, export_vectors

    with options.Session(registry)("export") as workspace:
        identity = workspace.registry.resolve(reference)
        if form is not None:
            if (index, scaling) != ("auto", "none"):
                raise UsageError("--index and --scaling are of item vectors.", "Leave them or --as out.")
            export(workspace, reference, form, target, backbone=backbone)
            out.result(str(target), {"id": identity, "as": form, "out": target}, as_json)
            return
        check_vectors_file(options.OutFile.convert(target, None, None), index)
        settings = RecommenderConfig(scaling=scaling)
        written = export_vectors(workspace.registry, reference, target, settings, index=index)
    for line in written.lines():
        out.note(line)
    out.result(str(target), {"id": identity, **written.facts()}, as_json)
