"""`earec compose`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from earec_core.cli.options import json_option, open_registry, pairs, registry_option
from earec_core.cli.output import out
from earec_core.errors import UsageError


@click.command(short_help="Merge aligned adapters by weight (Eq. 4).")
@click.option("--weights", required=True, metavar="M=W,...", help="E.g. text=0.05,vision=0.05,behavior=0.9")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="M=REF",
    help="The adapter of a modality.  [default: the only one registered]",
)
@click.option("--name", default="composite", show_default=True, help="What to register the composite as.")
@click.option("--method", default="delta", show_default=True, help="See docs/composition.md.")
@click.option(
    "--rank", type=click.IntRange(1), help="Truncate the exact sum to this rank; the error is reported."
)
@click.option(
    "--normalize/--no-normalize", default=None, help="Divide weights by their sum / take them as they are."
)
@click.option(
    "--allow-mismatch",
    multiple=True,
    metavar="WHAT",
    help="base, tokenizer, anchor, template or seed: compose although the adapters differ in it.",
)
@registry_option
@json_option
def command(
    weights: str,
    adapters: tuple[str, ...],
    name: str,
    method: str,
    rank: int | None,
    normalize: bool | None,
    allow_mismatch: tuple[str, ...],
    registry: Path,
    as_json: bool,
) -> None:
    """Merge adapters into one model that reads all their modalities. Prints the composite's id."""
    from earec_core.compose.stage import choose_adapters, compose_models

    lambdas = {}
    for key, value in pairs(tuple(weights.split(",")), "--weights").items():
        try:
            lambdas[key] = float(value)
        except ValueError:
            raise UsageError(
                f"The weight of {key} is {value!r}, not a number.", "Write e.g. text=0.05."
            ) from None
    opened = open_registry(registry)
    chosen = choose_adapters(opened, list(lambdas), pairs(adapters, "--adapter"))
    rule = {None: "strict", True: "normalize", False: "any"}[normalize]
    identity, report = compose_models(
        opened,
        chosen,
        lambdas,
        name=name,
        method=method,
        rank=rank,
        sum_rule=rule,
        allow=frozenset(allow_mismatch),
    )
    if as_json:
        summary = asdict(report)
        summary.pop("modules")
        summary.pop("path")
        out.json({"id": identity, "name": name, **summary})
        return
    out.note(f"{method}: rank {report.rank}, relative error {report.relative_error:.2g}")
    for pair, cosine in report.cosines.items():
        out.note(f"cosine {pair}: {cosine:.3f}")
    out.data(identity)
