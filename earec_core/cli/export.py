"""`earec export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out

if TYPE_CHECKING:
    from earec_core.export import Form


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--as",
    "form",
    required=True,
    type=click.Choice(["peft", "mergekit", "merged"]),
    help="A plain PEFT directory, a recipe that mergekit runs, or the base model with the composite in it.",
)
@click.option("--out", "target", required=True, type=options.PathType, help="A new directory.")
@click.option(
    "--backbone",
    help="The base model: a named LLM, a local directory or a hub id.  [default: the one recorded]",
)
@options.registry_option
@options.json_option
def command(
    reference: str, form: Form, target: Path, backbone: str | None, registry: Path, as_json: bool
) -> None:
    """Write the composite REF to a directory that needs no EAREC. Prints its path.

    REF may be an adapter, too, --as peft or merged.
    """
    from earec_core.export import export

    with options.Session(registry)("export") as workspace:
        export(workspace, reference, form, target, backbone=backbone)
    facts = {"id": workspace.registry.resolve(reference), "as": form, "out": target}
    out.result(str(target), facts, as_json)
