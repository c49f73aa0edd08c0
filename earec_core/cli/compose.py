"""`earec compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from earec_core.cli import options
from earec_core.cli.output import out
from earec_core.errors import UsageError

_SEARCH = "`earec search grid ...` writes a file that `earec compose --weights @FILE` takes."
_EXPORT = "`earec export REF --as ...` writes a composite in other forms."
_MOVED = {
    **dict.fromkeys(("search", "objective", "modalities", "step", "steps", "per-layer"), _SEARCH),
    **dict.fromkeys(("max-evaluations", "max-minutes", "max-items", "report", "config", "set"), _SEARCH),
    **dict.fromkeys(("into-base", "emit", "out", "backbone"), _EXPORT),
}
"""Options that other commands have now, and where."""


def _moved(function: options.Function) -> options.Function:
    """Refuse options by the names that they had, with a sentence that says where they are."""

    def refuse(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            option = parameter.opts[0]
            raise UsageError(f"earec compose has no {option} any more.", _MOVED[option.removeprefix("--")])

    for name in _MOVED:
        function = click.option(
            f"--{name}",
            hidden=True,
            is_eager=True,
            expose_value=False,
            is_flag=False,
            flag_value="",  # so that a value may follow or not
            callback=refuse,
        )(function)
    return function


@click.command()
@click.option(
    "--weights",
    required=True,
    metavar="M=W,...|@FILE",
    help="E.g. text=0.05,vision=0.05,behavior=0.9, or the file that `earec search` wrote.",
)
@click.option("--data", type=options.PathType, help="Take the adapters of this dataset, by their names.")
@click.option(
    "--name",
    help="What to register the composite as.  [default: composite/DATASET, if all adapters are of one]",
)
@click.option(
    "--method",
    default="delta",
    show_default=True,
    help="delta, factor, factor-norm, routed, ties, dare, or a plugin's; see docs/composition.md.",
)
@click.option("--rank", type=click.IntRange(1), help="Truncate to this rank; the error is reported.")
@click.option("--density", type=float, help="Share of entries that ties (default 0.2) or dare (0.5) keeps.")
@click.option("--seed", type=int, help="Of the entries that dare drops.  [default: 0]")
@click.option(
    "--normalize/--no-normalize", default=None, help="Divide weights by their sum / take them as they are."
)
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Norms, cosines and errors of the result: most of the time at high ranks.",
)
@options.adapters_option
@options.allow_option
@options.session_options
@options.json_option
@_moved
def command(
    weights: str,
    data: Path | None,
    name: str | None,
    normalize: bool | None,
    adapters: dict[str, str],
    allow: frozenset[str],
    session: options.Session,
    as_json: bool,
    **settings: Any,
) -> None:
    """Merge adapters into one model that reads all their modalities. Prints the composite's id."""
    from earec_core.catalog import Catalog
    from earec_core.compose import Recipe
    from earec_core.compose.stage import choose_adapters, compose_models
    from earec_core.compose.weighting import Weighting

    given = (
        Weighting.read(Path(weights[1:]))
        if weights[:1] == "@"
        else Weighting(weights=options.weights(weights))
    )
    rule = {None: "strict", True: "normalize", False: "any"}[normalize]
    recipe = Recipe(given.weights, layer_weights=given.layer_weights, sum_rule=rule, **settings)  # type: ignore[arg-type]
    catalog = Catalog.open(data).name if data is not None else None
    with session("compose") as workspace:
        named = {**given.adapters, **adapters}
        chosen = choose_adapters(workspace.registry, list(given.weights), named, catalog)
        composed = compose_models(workspace, chosen, recipe, name=name, allow=allow, search=given.search)
    report = composed.report
    if data is not None:
        options.follow_up("explain", composed.name, "--data", str(data))
    if as_json:
        out.json({"id": composed.id, "name": composed.name, **report.summary()})
        return
    summary = f"{recipe.method}: rank {report.rank}"
    if report.relative_error is not None:
        summary += f", relative error {report.relative_error:.2g}"
    if report.truncation_error != report.relative_error:
        summary += f" of the exact sum, {report.truncation_error:.2g} of the method's own result"
    out.note(summary)
    for pair, cosine in report.cosines.items():
        out.note(f"cosine {pair}: {cosine:.3f}")
    out.data(composed.id)
