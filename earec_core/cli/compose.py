"""`earec compose`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from earec_core.cli.options import PathType, json_option, open_registry, pairs, registry_option
from earec_core.cli.output import out
from earec_core.cli.search import SearchOptions, search_options
from earec_core.errors import UsageError


@click.command(short_help="Merge aligned adapters by weight (Eq. 4).")
@click.option("--weights", metavar="M=W,...", help="E.g. text=0.05,vision=0.05,behavior=0.9")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="M=REF",
    help="The adapter of a modality.  [default: the only one registered]",
)
@click.option("--name", default="composite", show_default=True, help="What to register the composite as.")
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
@click.option(
    "--allow-mismatch",
    multiple=True,
    metavar="WHAT",
    help="base, tokenizer, anchor, template, seed or plugin: compose although the adapters differ in it.",
)
@click.option(
    "--into-base", type=PathType, help="Also write the base model with the composite merged into it."
)
@click.option("--backbone", help="That base model: a named LLM, a local directory or a hub id.")
@click.option(
    "--emit",
    type=click.Choice(["peft", "mergekit"]),
    help="Also write, to --out, a plain PEFT directory or a recipe that mergekit runs.",
)
@click.option("--out", "emitted", type=PathType, help="Where --emit writes: a new directory.")
@search_options
@registry_option
@json_option
def command(
    weights: str | None,
    search: SearchOptions | None,
    adapters: tuple[str, ...],
    name: str,
    method: str,
    rank: int | None,
    density: float | None,
    seed: int | None,
    normalize: bool | None,
    measure: bool,
    allow_mismatch: tuple[str, ...],
    into_base: Path | None,
    backbone: str | None,
    emit: str | None,
    emitted: Path | None,
    registry: Path,
    as_json: bool,
) -> None:
    """Merge adapters into one model that reads all their modalities. Prints the composite's id."""
    from earec_core.compose import get_method
    from earec_core.compose.checks import check_options
    from earec_core.compose.stage import choose_adapters, compose_models
    from earec_core.export.stage import Exports

    if (weights is None) == (search is None):
        raise UsageError(
            "Exactly one of --weights and --search is needed.", "Write e.g. --weights text=0.5,vision=0.5"
        )
    opened = open_registry(registry)
    given = pairs(adapters, "--adapter")
    opened.check_name(name)
    allow = frozenset(allow_mismatch)
    check_options(get_method(method), {"density": density, "seed": seed})
    if search is not None and method != "delta":
        raise UsageError(f"A search is over the weights of delta, not of {method}.", "Leave --method out.")
    lambdas = _weights(weights) if weights is not None else {}
    chosen = choose_adapters(opened, search.modalities if search else list(lambdas), given)
    exports = Exports(into_base, emit, emitted, backbone)
    per_layer = search is not None and search.per_layer
    base = exports.check(
        opened, chosen, lambdas, method=method, rank=rank, per_layer=per_layer, note=out.note
    )
    layers: Mapping[int, Mapping[str, float]] | None = None
    searched: dict[str, Any] | None = None
    if search is not None:
        found = search.run(opened, chosen, backbone, allow)
        lambdas, layers = dict(found.best.weights), found.best.layers or None
        searched = found.summary()
    rule = {None: "strict", True: "normalize", False: "any"}[normalize]
    identity, report = compose_models(
        opened,
        chosen,
        lambdas,
        name=name,
        method=method,
        rank=rank,
        density=density,
        seed=seed,
        layer_weights=layers,
        sum_rule=rule,
        measure=measure,
        allow=allow,
        search=searched,
    )
    if into_base or emit:
        with out.progress("Merging into the base") as bar:
            exports.write(opened, identity, chosen, report, base, progress=bar.update)
    if as_json:
        summary = asdict(report)
        summary.pop("modules")
        summary.pop("path")
        written = {"into_base": into_base, "out": emitted}
        summary |= {key: str(path) for key, path in written.items() if path is not None}
        if search is not None:
            summary["search"] = {**found.summary(), "run": str(found.folder)}
        out.json({"id": identity, "name": name, **summary})
        return
    said = f"{method}: rank {report.rank}"
    if report.relative_error is not None:
        said += f", relative error {report.relative_error:.2g}"
    if report.truncation_error != report.relative_error:
        said += f" of the exact sum, {report.truncation_error:.2g} of the method's own result"
    out.note(said)
    for pair, cosine in report.cosines.items():
        out.note(f"cosine {pair}: {cosine:.3f}")
    out.data(identity)


def _weights(text: str) -> dict[str, float]:
    given = tuple(text.split(","))
    values = pairs(given, "--weights")
    if len(values) < len(given):
        raise UsageError(f"--weights {text!r} names a modality twice.", "Name each once.")
    found = {}
    for key, value in values.items():
        try:
            found[key] = float(value)
        except ValueError:
            raise UsageError(
                f"The weight of {key} is {value!r}, not a number.", "Write e.g. text=0.05."
            ) from None
    return found
