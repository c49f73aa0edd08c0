"""`earec reproduce`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.config import RunConfig
from earec_core.errors import EarecError, UsageError
from earec_core.files import write_atomic
from earec_core.studies.processes import sensible

if TYPE_CHECKING:
    from earec_core.catalog import Catalog
    from earec_core.studies.reproduce import Cost, Page, Protocol, Row


_MOST = 8
_ALWAYS = {"table", "figure", "data", "target", "as_json", "config", "session"}
_TABLE = {
    "adapters",
    "modalities",
    "methods",
    "reference",
    "only",
    "seeds",
    "trials",
    "grid",
    "minutes",
    "exclude_seen",
    "dry_run",
    "at_once",
}
_TAKEN = {
    "table 1": set[str](),
    "table 2": {*_TABLE, "weights", "encoder"},
    "table 3": {*_TABLE, "weights"},
    "table 4": {*_TABLE, "weights"},
    "figure 4": {"adapters", "modalities", "items"},
    "figure 5": {"adapters", "modalities", "items", "seeds", "at_once"},
}
"""What each takes of the options by which it could be asked for more."""


@click.command()
@click.option(
    "--table",
    type=int,
    help="1: what catalogs hold; 2: recommenders compared; 3: without each modality; 4: weights and method of the "
    "composition.",
)
@click.option(
    "--figure",
    type=click.IntRange(4, 5),
    help="4: what the LLM says of items; 5: whether saying it well goes with recommending well.",
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
@click.option(
    "--weights", metavar="M=W,...", help="Of the composition in tables 2 and 3.  [default: the paper's]"
)
@click.option("--reference", metavar="ROW", help="Compare with this row.  [default: sasrec, all; delta]")
@options.names_option("--only", metavar="ROW,...", help="These rows, and the reference.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Of the recommender.")
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Settings tried for each row on validation; 1: as given.",
)
@click.option("--grid", is_flag=True, help="The settings tried are the paper's learning rates and widths.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="Of tuning a row: no trial starts later."
)
@click.option(
    "--encoder", default="all-minilm-l6-v2", show_default=True, help="Of text, for the baselines of table 2."
)
@click.option(
    "--items", type=click.IntRange(1), help="Of a figure.  [default: 5 in figure 4, all in figure 5]"
)
@click.option(
    "--exclude-seen", is_flag=True, help="Leave each user's history out of the ranking of test targets."
)
@click.option(
    "--dry-run", is_flag=True, help="List the rows and how long each would take here; make nothing."
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    help=f"Trainings that run at once.  [default: one a core, {_MOST} at most; 1 with a GPU]",
)
@click.option("--out", "target", type=options.OutFile, help="Also write a page: .md, .html or .csv.")
@options.config_options("preset", "backbone")
@options.session_options
@options.json_option
def command(
    table: int | None,
    figure: int | None,
    data: tuple[Path, ...],
    target: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """A table or figure of the paper, measured on catalogs of one's own.

    Table 2 compares recommenders tuned alike; table 3 composes stored adapters, leaves out each modality in turn
    and then all; table 4 composes them at the paper's weights by every method, beside each adapter alone, the mean
    and the concatenation of their vectors, and SASRec on ids. Safe to interrupt: what is made is not made again.
    """
    from earec_core.catalog import Catalog
    from earec_core.studies import reproduce as study

    if (table is None) == (figure is None):
        raise UsageError("Exactly one of --table and --figure is needed.", "Give --table N or --figure N.")
    _check_taken(f"figure {figure}" if table is None else f"table {table}")
    catalogs = [Catalog.open(path) for path in data]
    if table == 1:
        page = study.described(catalogs)
    elif len(catalogs) > 1:
        raise UsageError("Only table 1 is of several catalogs.", "Give one --data.")
    elif table is None:
        page = _figure(figure, catalogs[0], **asked)
    else:
        planned = _planned(table, **asked)
        if asked["dry_run"]:
            _list(planned[0], _costs(catalogs[0], planned[0], **asked), as_json)
            return
        page = _table(table, catalogs[0], *planned, **asked)
    if target is not None:
        try:
            write_atomic(target, study.written(page, options.typed(), target.suffix))
        except OSError as error:
            raise EarecError(f"{target} cannot be written: {error.strerror}.", "Name another file.") from None
    _show(page, as_json)


def _check_taken(asked: str) -> None:
    """Refuse options that what is asked for would not heed."""
    context = click.get_current_context()
    taken = _ALWAYS | _TAKEN.get(asked, _TABLE)
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        known = name in taken or name not in set().union(*_TAKEN.values())
        if given and not known:
            raise UsageError(f"{parameter.opts[0]} is nothing that {asked} heeds.", "Leave it out.")


def _planned(
    table: int,
    *,
    adapters: dict[str, str],
    modalities: list[str] | None,
    methods: list[str] | None,
    weights: str | None,
    reference: str | None,
    only: list[str] | None,
    **_: Any,
) -> tuple[list[Row], str]:
    from earec_core.studies import reproduce as study

    return study.plan(
        table,
        modalities=modalities,
        adapters=list(adapters),
        methods=methods,
        weights=options.weights(weights) if weights else None,
        reference=reference,
        only=only,
    )


def _table(
    table: int,
    catalog: Catalog,
    rows: list[Row],
    compared_with: str,
    *,
    adapters: dict[str, str],
    config: RunConfig,
    session: options.Session,
    at_once: int | None,
    **asked: Any,
) -> Page:
    from earec_core.studies import reproduce as study

    protocol = _protocol(**asked)
    with session("reproduce") as workspace:
        report = study.reproduce(
            workspace,
            catalog,
            table,
            rows,
            compared_with,
            config,
            adapters=adapters,
            protocol=protocol,
            at_once=at_once or sensible(_MOST),
        )
    return study.measured(report)


def _protocol(
    *,
    seeds: int,
    trials: int,
    minutes: float | None,
    encoder: str,
    grid: bool,
    exclude_seen: bool,
    **_: Any,
) -> Protocol:
    from earec_core.studies import reproduce as study

    if grid and trials < 2:
        raise UsageError("--grid is of the trials, and there is one.", "Give --trials 13 for the whole grid.")
    return study.Protocol(seeds, trials, minutes, encoder, grid, exclude_seen)


def _costs(
    catalog: Catalog,
    rows: list[Row],
    *,
    adapters: dict[str, str],
    config: RunConfig,
    session: options.Session,
    at_once: int | None,
    **asked: Any,
) -> dict[str, Cost]:
    """What each row would take; nothing, and why, where that cannot be said yet."""
    from earec_core.studies import reproduce as study

    protocol, at_once = _protocol(**asked), at_once or sensible(_MOST)
    if not session.registry.exists():
        out.note(f"How long it would take is not known: there is no registry {session.registry} yet.")
        return {}
    try:
        with session("reproduce") as workspace:
            costs = study.expected(
                workspace, catalog, rows, config, adapters=adapters, protocol=protocol, at_once=at_once
            )
    except UsageError as error:
        out.note(f"How long it would take is not known: {error.problem}")
        return {}
    encoding = sum(cost.encoding for cost in costs.values())
    training = sum(cost.training for cost in costs.values()) / at_once
    out.note(
        f"On this machine, {at_once} at a time: {encoding:.1f} minutes of encoding and {training:.1f} of training "
        "at most, were no training to stop before its last epoch."
    )
    return costs


def _figure(
    figure: int | None,
    catalog: Catalog,
    *,
    adapters: dict[str, str],
    modalities: list[str] | None,
    seeds: int,
    items: int | None,
    at_once: int | None,
    config: RunConfig,
    session: options.Session,
    **_: Any,
) -> Page:
    from earec_core.studies import reproduce as study

    shown = modalities or list(adapters)
    if not shown:
        raise UsageError("A figure is of certain modalities.", "Give --modalities NAME,...")
    with session("reproduce") as workspace:
        if figure == 4:
            made = study.cases(
                workspace, catalog, config, modalities=shown, adapters=adapters, items=items or 5
            )
            return study.shown_cases(catalog.name, made)
        correlation = study.correlate(
            workspace,
            catalog,
            config,
            modalities=shown,
            adapters=adapters,
            seeds=seeds,
            items=items,
            at_once=at_once or sensible(_MOST),
        )
    return study.correlated(catalog.name, correlation)


def _show(page: Page, as_json: bool) -> None:
    if as_json:
        out.json(page.facts)
        return
    for remark in page.remarks:
        out.note(remark)
    first, *others = page.tables
    out.table([dict(row) for row in first.rows], list(first.columns))
    for table in others:
        out.note(f"{table.title}. {table.caption}")
        for row in table.rows:
            out.note("  ".join(row.get(column, "") for column in table.columns))


def _list(rows: Sequence[Row], costs: Mapping[str, Cost], as_json: bool) -> None:
    listed: list[dict[str, Any]] = [
        {
            "row": row.name,
            "kind": row.kind,
            "method": row.method,
            "modalities": ",".join(row.modalities) or None,
            "weights": ",".join(f"{m}={w:.4f}" for m, w in row.weights.items()) or None,
        }
        for row in rows
    ]
    for entry in listed if costs else ():
        cost = costs[entry["row"]]
        entry |= {"encoding_min": round(cost.encoding, 2), "training_min": round(cost.training, 2)}
    out.table(listed, list(listed[0]), as_json)
