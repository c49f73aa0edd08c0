"""`earec data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import PathType, json_option, pairs
from earec_core.cli.output import out


@click.group(short_help="Import a catalog, show a dataset directory.")
def command() -> None:
    """Catalogs as dataset directories of Parquet tables; formats in docs/data.md."""


@command.command("import")
@click.argument("source", type=PathType)
@click.option("--out", "target", type=PathType, required=True, help="The dataset directory to be made.")
@click.option(
    "--format",
    "format_",
    default="auto",
    show_default=True,
    help="movielens, amazon-2018, amazon-2023, recbole or generic.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="EAREC=SOURCE",
    help="Name a column; a|b takes the first that is not empty.",
)
@click.option("--name", help="The catalog's name.  [default: the name of --out]")
@click.option("--core", type=click.IntRange(1), default=5, show_default=True, help="k-core filtering.")
@click.option("--min-rating", type=float, help="Drop interactions rated lower.")
@click.option("--max-len", type=click.IntRange(3), help="Each user's most recent interactions, at most.")
@click.option(
    "--relations",
    type=click.Choice(["auto", "given", "cooccurrence", "none"]),
    default="auto",
    show_default=True,
    help="Where related items come from; co-occurrence uses training interactions only.",
)
@click.option("--force", is_flag=True, help="Replace the dataset directory that is there.")
@json_option
def import_(
    source: Path,
    target: Path,
    format_: str,
    columns: tuple[str, ...],
    name: str | None,
    core: int,
    min_rating: float | None,
    max_len: int | None,
    relations: str,
    force: bool,
    as_json: bool,
) -> None:
    """Import SOURCE, a folder in one of the known formats."""
    from earec_core.catalog import import_dataset

    catalog = import_dataset(
        source,
        target,
        format=format_,
        columns=pairs(columns, "--column"),
        name=name,
        core=core,
        min_rating=min_rating,
        max_len=max_len,
        relations=relations,  # type: ignore[arg-type]
        force=force,
    )
    _show(catalog.manifest, as_json)


@command.command()
@click.argument("data", type=PathType)
@json_option
def show(data: Path, as_json: bool) -> None:
    """Show what a dataset directory holds."""
    from earec_core.catalog import Catalog

    _show(Catalog.open(data).manifest, as_json)


def _show(manifest: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        out.json(manifest)
        return
    counts = dict(manifest["counts"])
    columns = counts.pop("columns")
    rows = [{"what": k, "count": v} for k, v in counts.items()]
    rows += [{"what": f"items with {k}", "count": v} for k, v in columns.items()]
    out.table(rows, ["what", "count"])
