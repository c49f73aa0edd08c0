"""`earec reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import EarecError, UsageError
from earec_core.files import write_atomic

if TYPE_CHECKING:
    from earec_core.catalog import Catalog
    from earec_core.studies.reproduce import Row


@click.command()
@click.option(
    "--table",
    type=int,
    required=True,
    help="1: what catalogs hold; 3: without each modality; 4: weights and method of the composition.",
)
@click.option(
    "--data",
    type=options.PathType,
    multiple=True,
    required=True,
    help="A dataset directory (see `earec data import`); several for table 1.",
)
@options.adapters_option
@options.names_option(
    "--modalities", help="Comma-separated; default: the paper's. What is left out gets no weight."
)
@options.names_option("--methods", help="Of composition, comma-separated; default: the table's.")
@click.option("--weights", metavar="M=W,...", help="Of the composition in table 3.  [default: the paper's]")
@click.option("--reference", metavar="ROW", help="Compare with this row.  [default: delta, equal weights]")
@options.names_option("--only", metavar="ROW,...", help="These rows, and the reference.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Of the recommender.")
@click.option("--dry-run", is_flag=True, help="List the rows and do nothing.")
@click.option("--out", "target", type=options.OutFile, help="Also write a page of Markdown.")
@options.config_options("backbone")
@options.session_options
@options.json_option
def command(
    table: int,
    data: tuple[Path, ...],
    adapters: dict[str, str],
    modalities: list[str] | None,
    methods: list[str] | None,
    weights: str | None,
    reference: str | None,
    only: list[str] | None,
    seeds: int,
    dry_run: bool,
    target: Path | None,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """A table of the paper, measured on catalogs of one's own.

    Table 3 composes stored adapters, leaves out each modality in turn and then all, and measures recommendation
    with each; table 4 composes them at the paper's weights by every method, beside each adapter alone, the mean
    and the concatenation of their vectors, and SASRec on ids. Safe to interrupt: what is made is not made again.
    """
    from earec_core.catalog import Catalog
    from earec_core.studies import reproduce as study

    if table == 1:
        _describe([Catalog.open(path) for path in data], as_json)
        return
    rows, compared_with = study.plan(
        table,
        modalities=modalities,
        adapters=list(adapters),
        methods=methods,
        weights=options.weights(weights) if weights else None,
        reference=reference,
        only=only,
    )
    if len(data) > 1:
        raise UsageError(f"Table {table} is of one catalog.", "Give one --data; table 1 takes several.")
    if dry_run:
        _list(rows, as_json)
        return
    with session("reproduce") as workspace:
        report = study.reproduce(
            workspace, Catalog.open(data[0]), rows, compared_with, config, adapters=adapters, seeds=seeds
        )
    if target is not None:
        try:
            write_atomic(target, study.markdown(report, options.typed()))
        except OSError as error:
            raise EarecError(f"{target} cannot be written: {error.strerror}.", "Name another file.") from None
    if as_json:
        out.json(report.as_json())
        return
    for remark in study.remarks(report):
        out.note(remark)
    out.table(study.display(report), [*study.COLUMNS, *study.BESIDE])
    for factor in report.effects:
        for effect in study.effects(report, factor):
            out.note("  ".join(f"{key} {value}" for key, value in effect.items()))


def _list(rows: Sequence[Row], as_json: bool) -> None:
    listed = [
        {
            "row": row.name,
            "kind": row.kind,
            "method": row.method,
            "modalities": ",".join(row.modalities) or None,
            "weights": ",".join(f"{m}={w:.4f}" for m, w in row.weights.items()) or None,
        }
        for row in rows
    ]
    out.table(listed, ["row", "kind", "method", "modalities", "weights"], as_json)


def _describe(catalogs: Sequence[Catalog], as_json: bool) -> None:
    from earec_core.studies import reproduce as study

    rows = study.describe(catalogs)
    if as_json:
        out.json(rows)
        return
    counted = ("users", "items", "interactions")
    shown = [
        {
            **row,
            **{name: f"{row[name]:,}" for name in counted},
            "length": f"{row['length']:.2f}",
            "density": f"{row['density']:.3%}",
            "fields": ", ".join(f"{name} {count:,}" for name, count in row["fields"].items()),
        }
        for row in rows
    ]
    out.table(shown, ["dataset", *counted, "length", "density", "fields"])
