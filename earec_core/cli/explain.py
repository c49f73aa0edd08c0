"""`earec explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import UsageError

if TYPE_CHECKING:
    from earec_core.explain import Explanation

_SAID = ("unaligned", "aligned", "copied")


@click.command()
@click.argument("model")
@click.argument("items", metavar="[ITEM]...", nargs=-1)
@options.data_option
@click.option(
    "--split", type=click.Choice(["train", "valid", "test", "all"]), default="test", show_default=True
)
@click.option(
    "--items", "max_items", type=click.IntRange(1), help="A random part of the split, for a quick look."
)
@options.names_option("--modalities", help="Comma-separated; default: all of the model's.")
@click.option("--out", "target", type=options.OutFile, help="Also write every text to this Parquet file.")
@click.option(
    "--report", "page", type=options.OutFile, help="Also write a page: scores, and cards of some items."
)
@options.force_option
@options.config_options("preset", "backbone")
@options.session_options
@options.json_option
def command(
    model: str,
    items: tuple[str, ...],
    data: Path,
    split: str,
    max_items: int | None,
    modalities: list[str] | None,
    target: Path | None,
    page: Path | None,
    force: bool,
    config: RunConfig,
    session: options.Session,
    as_json: bool,
) -> None:
    """Generate the anchors of a split's items from each modality of MODEL alone and from all together.

    With ids of items, what is said of each of them, beside its anchor. Beside the model stand the un-aligned
    backbone, a control that reads another item's input (where the difference to it is 0, the text does not depend
    on the input), and the input's words as they are (copied). Behind the whole anchor stand its fields, if it has
    several, and its words that the LLM did not read. Safe to interrupt: texts that were generated are kept.
    """
    from earec_core.catalog import Catalog
    from earec_core.explain import VARIANTS, explain, inputs_shown, text_rows, write_texts
    from earec_core.report import explained, write

    if items:
        _check_alone(max_items is not None or page is not None)
    catalog = Catalog.open(data)
    with session("explain") as workspace:
        explanation = explain(
            workspace,
            catalog,
            model,
            config,
            split=split,  # type: ignore[arg-type]
            max_items=max_items,
            items=items,
            names=modalities,
            variants=_SAID if items else VARIANTS,
            force=force,
        )
    if target is not None:
        write_texts(explanation, catalog, target)
        out.note(f"Texts: {target}")
    if items:
        said = sorted(text_rows(explanation, catalog), key=lambda row: items.index(row["item_id"]))
        out.table(said, list(said[0]) if said else [], as_json)
        return
    _show(explanation, as_json)
    if page is not None:
        report = explained(
            explanation.table(),
            text_rows(explanation, catalog),
            inputs_shown(explanation, catalog),
            model=model,
            catalog=catalog.name,
            split=split,
            command=options.typed(),
        )
        out.note(f"Report: {write(report, page)}")


def _check_alone(others: bool) -> None:
    """Raises UsageError for options, beside named items, that are of a whole split."""
    source = click.get_current_context().get_parameter_source("split")
    if others or source == click.core.ParameterSource.COMMANDLINE:
        raise UsageError(
            "--split, --items and --report are of a whole split.", "Leave them or the items out."
        )


def _show(explanation: Explanation, as_json: bool) -> None:
    """A row per source, and its parts."""
    from earec_core.explain import WHOLE

    rows, parts = explanation.table(), explanation.parts()
    columns = list(dict.fromkeys(key for row in (*rows, *parts) for key in row if key != "part"))
    if as_json:
        nested = [{**row, "parts": [p for p in parts if p["source"] == row["source"]]} for row in rows]
        out.table(nested, [*columns, "parts"], as_json)
    else:
        columns.insert(1, "part")
        out.table([*({**row, "part": WHOLE} for row in rows), *parts], columns)
