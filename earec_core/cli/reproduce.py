"""`earec reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from earec_core.cli.options import (
    OutFile,
    PathType,
    Session,
    data_option,
    json_option,
    modality_names,
    pairs,
    run_config,
    session_options,
    typed,
)
from earec_core.cli.output import out
from earec_core.errors import EarecError
from earec_core.files import write_atomic


@click.command(short_help="Measure a table of the paper on a dataset, with controls.")
@click.option("--table", type=int, required=True, help="4: weights and method of the composition.")
@data_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="M=REF",
    help="The adapter of a modality.  [default: the only one registered]",
)
@click.option("--modalities", help="Comma-separated; default: the paper's. What is left out gets no weight.")
@click.option("--methods", help="Of composition, comma-separated; default: the table's.")
@click.option("--reference", metavar="ROW", help="Compare with this row.  [default: delta, equal weights]")
@click.option("--only", metavar="ROW,...", help="These rows, and the reference.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Of the recommender.")
@click.option("--dry-run", is_flag=True, help="List the rows and do nothing.")
@click.option("--out", "target", type=OutFile, help="Also write a page of Markdown.")
@click.option("--config", "file", type=PathType, help="A TOML file with sections as in docs/method.md.")
@click.option("--backbone", help="A named LLM, a local directory or a hub id.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, e.g. recommender.lr=3e-4 or encode.batch_tokens=8192. Repeatable.",
)
@session_options
@json_option
def command(
    table: int,
    data: Path,
    adapters: tuple[str, ...],
    modalities: str | None,
    methods: str | None,
    reference: str | None,
    only: str | None,
    seeds: int,
    dry_run: bool,
    target: Path | None,
    file: Path | None,
    backbone: str | None,
    settings: tuple[str, ...],
    session: Session,
    as_json: bool,
) -> None:
    """Compose stored adapters at the paper's weights by every method, and measure recommendation with each.

    Beside them stand the un-aligned backbone, each adapter alone, the mean and the concatenation of their
    vectors, and SASRec on ids. Safe to interrupt: what is made is not made again.
    """
    from earec_core.studies.reproduce import (
        BESIDE,
        COLUMNS,
        display,
        effects,
        markdown,
        plan,
        remarks,
        reproduce,
    )

    given = pairs(adapters, "--adapter")
    rows, against = plan(
        table,
        modalities=modality_names(modalities),
        adapters=list(given),
        methods=modality_names(methods),
        reference=reference,
        only=modality_names(only),
    )
    if dry_run:
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
        return

    from earec_core.catalog import Catalog

    config = run_config(file, "recommended", backbone, settings)
    with session("reproduce") as workspace:
        report = reproduce(workspace, Catalog.open(data), rows, against, config, adapters=given, seeds=seeds)
    if target is not None:
        try:
            write_atomic(target, markdown(report, typed()))
        except OSError as error:
            raise EarecError(f"{target} cannot be written: {error.strerror}.", "Name another file.") from None
    if as_json:
        out.json(report.as_json())
        return
    for remark in remarks(report):
        out.note(remark)
    out.table(display(report), [*COLUMNS, *BESIDE])
    for factor in report.effects:
        for row in effects(report, factor):
            out.note("  ".join(f"{key} {value}" for key, value in row.items()))
