"""`earec data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from earec_core.cli import options
from earec_core.cli.output import out


@click.group()
def command() -> None:
    """Catalogs as dataset directories of Parquet tables; formats in docs/data.md."""


@command.command("import")
@click.argument("source", type=options.PathType)
@click.option(
    "--out", "target", type=options.PathType, required=True, help="The dataset directory to be made."
)
@click.option(
    "--format",
    default="auto",
    show_default=True,
    help="movielens, amazon-2018, amazon-2023, recbole or generic.",
)
@options.pairs_option(
    "--column",
    "columns",
    metavar="EAREC=SOURCE",
    help="Name a column; a|b takes the first that is not empty.",
)
@click.option("--name", help="The catalog's name.  [default: the name of --out]")
@click.option(
    "--domain",
    metavar="WORDS",
    help="What prompts call the items, e.g. 'office products'.  [default: the catalog's name]",
)
@click.option(
    "--core",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="k-core filtering; 0 keeps items that nobody has chosen yet.",
)
@click.option("--min-rating", type=float, help="Drop interactions rated lower.")
@click.option("--max-len", type=click.IntRange(3), help="Each user's most recent interactions, at most.")
@click.option(
    "--relations",
    type=click.Choice(["auto", "given", "cooccurrence", "none"]),
    default="auto",
    show_default=True,
    help="Where related items come from; co-occurrence uses training interactions only.",
)
@click.option(
    "--allow-outside", is_flag=True, help="Let columns name files outside SOURCE, to be read and shown."
)
@click.option("--force", is_flag=True, help="Replace the dataset directory that is there.")
@options.json_option
def import_(source: Path, target: Path, as_json: bool, **settings: Any) -> None:
    """Import SOURCE, a folder in one of the known formats."""
    from earec_core.catalog import import_dataset
    from earec_core.catalog.formats.files import several

    manifest = import_dataset(source, target, **settings).manifest
    for done, names in (("Read", manifest["files"]["read"]), ("Left out", manifest["files"]["left"])):
        if names:
            out.note(f"{done} {several(names)}.")
    removed = ", ".join(f"{count:,} {rule}" for rule, count in manifest["removed"].items())
    if removed or manifest["unused_items"]:
        unused = f"Items without one left: {manifest['unused_items']:,}."
        out.note(f"Interactions removed: {removed or 'none'}. {unused}")
    _align_next(target)
    _show(manifest, as_json)


@command.command()
@click.argument("catalogs", metavar="DATA DATA...", type=options.PathType, nargs=-1, required=True)
@click.option(
    "--out", "target", type=options.PathType, required=True, help="The dataset directory to be made."
)
@click.option("--name", help="The catalog's name.  [default: theirs with dashes between]")
@click.option("--force", is_flag=True, help="Replace the dataset directory that is there.")
@options.json_option
def join(catalogs: tuple[Path, ...], target: Path, name: str | None, force: bool, as_json: bool) -> None:
    """Make one dataset directory of several, to align on them together; ids become CATALOG/ID."""
    from earec_core.catalog import Catalog, join_catalogs

    opened = [Catalog.open(data) for data in catalogs]
    manifest = join_catalogs(opened, target, name=name, force=force).manifest
    _align_next(target)
    _show(manifest, as_json)


@command.command()
@click.argument("data", type=options.PathType)
@click.option(
    "--format",
    required=True,
    type=click.Choice(["recbole", "rectools"]),
    help="Atomic files of RecBole, or tables that RecTools' Dataset.construct takes.",
)
@click.option("--out", "target", required=True, type=options.PathType, help="A new directory.")
@click.option("--vectors", metavar="REF", help="Item vectors (see `earec encode`), as features of the items.")
@click.option(
    "--max-len",
    type=click.IntRange(1),
    help="recbole: the most recent items of a history, at most.  [default: 50]",
)
@options.registry_option
@options.json_option
def export(
    data: Path,
    format: str,  # noqa: A002 - the option's name
    target: Path,
    vectors: str | None,
    max_len: int | None,
    registry: Path,
    as_json: bool,
) -> None:
    """Write DATA, split by leave-one-out, for another library's recommenders. Prints the directory."""
    from earec_core.artifacts import ItemVectors
    from earec_core.catalog import Catalog
    from earec_core.export import export_dataset

    catalog = Catalog.open(data)
    table = ItemVectors.open(options.open_registry(registry), vectors, catalog) if vectors else None
    export_dataset(catalog, format, target, vectors=table, max_len=max_len)
    facts = {"format": format, "out": target, "vectors": table.id if table else None}
    out.result(str(target), facts, as_json)


@command.command()
@click.argument("data", type=options.PathType)
@options.json_option
def show(data: Path, as_json: bool) -> None:
    """Show what a dataset directory holds."""
    from earec_core.catalog import Catalog

    _show(Catalog.open(data).manifest, as_json)


def _align_next(target: Path) -> None:
    """Say how to look at what an LLM would read of a dataset, by the modality that stands first in a prompt."""
    from earec_core.cli.inspection import every_plugin
    from earec_core.plugins import State

    usable = [plugin.spec for plugin in every_plugin() if plugin.spec and plugin.state is State.OK]
    if usable:
        first = min(usable, key=lambda spec: (spec.order, spec.name))
        options.follow_up("align", "--modality", first.name, "--data", str(target), "--show-samples", "2")


def _show(manifest: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        out.json(manifest)
        return
    counts = dict(manifest["counts"])
    columns = counts.pop("columns")
    counts |= {f"items with {column}": count for column, count in columns.items()}
    out.table([{"what": name, "count": count} for name, count in counts.items()], ["what", "count"])
