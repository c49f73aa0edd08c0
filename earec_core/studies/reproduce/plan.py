"""The rows of a table: the paper's weightings by every method, and the controls beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from earec_core.compose import method_names
from earec_core.errors import UsageError

TABLES = (4,)
Kind = Literal["composite", "unaligned", "single", "mean", "concatenation", "ids"]


@dataclass(frozen=True)
class Row:
    """One row: what its item vectors are made of.

    Attributes:
        name: unique in the table.
        kind: a composite, or which control.
        modalities: what is shown to the model.
        method: of the composition.
        weights: lambda of each modality, sum 1; of composites alone.
        paper: the paper's figures at these weights, none for a control.
    """

    name: str
    kind: Kind
    modalities: tuple[str, ...] = ()
    method: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


def read_table(table: int) -> dict[str, Any]:
    """What the paper's table says.

    Raises:
        UsageError: it is no table that can be reproduced.
    """
    if table not in TABLES:
        known = ", ".join(map(str, TABLES))
        raise UsageError(f"Table {table} cannot be reproduced.", f"Give --table {known}.")
    return tomllib.loads(resources.files(__package__).joinpath(f"table{table}.toml").read_text())


def weightings(
    rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The paper's weightings over the modalities that there are.

    Args:
        rows: `weights` by modality, and the `paper`'s figures.
        modalities: those given; the others' weights are left out.

    Returns:
        Weights that sum to 1, and the paper's figures; of equal weightings the first.
    """
    distinct: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for row in rows:
        total = sum(row["weights"][m] for m in modalities)
        weights = {m: row["weights"][m] / total for m in modalities}
        distinct.setdefault(label(weights), (weights, row["paper"]))
    return list(distinct.values())


def plan(
    table: int,
    *,
    modalities: Sequence[str] | None = None,
    adapters: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    reference: str | None = None,
    only: Sequence[str] | None = None,
) -> tuple[list[Row], str]:
    """The rows to measure.

    Args:
        table: the paper's table.
        modalities: those that there are adapters of; default: the paper's.
        adapters: modalities that a certain adapter is given for.
        methods: of composition; default: the table's.
        reference: the row that the others are compared with; default: `delta` at the first weighting.
        only: names of rows; default: all. The reference is always among them.

    Returns:
        The rows, and the reference's name.

    Raises:
        UsageError: an unknown table, modality, method or row.
    """
    content = read_table(table)
    if modalities is not None:
        _among("--modalities", modalities, content["modalities"], f"Table {table} has")
    given = [m for m in content["modalities"] if modalities is None or m in modalities]
    if adapters:
        _among("--adapter", adapters, given, "The modalities are")
    methods = list(dict.fromkeys(methods or content["methods"]))
    _among("--methods", methods, method_names(), "The methods are")
    weighted = weightings(content["row"], given)
    rows = [
        Row(f"{method}-{label(weights)}", "composite", tuple(given), method, weights, paper)
        for method in dict.fromkeys([*methods, "delta"])
        for weights, paper in weighted
        if method in methods or (reference is None and weights is weighted[0][0])
    ]
    for listed in content["unaligned"]:
        shown = tuple(m for m in listed if m in given)
        name = "unaligned" if shown == tuple(given) else f"unaligned-{'-'.join(shown)}"
        if shown and all(row.name != name for row in rows):
            rows.append(Row(name, "unaligned", shown))
    rows += [Row(m, "single", (m,)) for m in given]
    if len(given) > 1:
        rows += [Row("mean", "mean", tuple(given)), Row("concatenation", "concatenation", tuple(given))]
    rows.append(Row("ids", "ids"))
    names = [row.name for row in rows]
    chosen = reference or f"delta-{label(weighted[0][0])}"
    _among("--reference", [chosen], names, "The rows are")
    if only is not None:
        _among("--only", only, names, "The rows are")
        rows = [row for row in rows if row.name in only or row.name == chosen]
    return rows, chosen


def label(weights: Mapping[str, float]) -> str:
    """Weights in a name: percent by percent, such as 15-42.5-42.5."""
    return "-".join(f"{round(100 * weight, 1):g}" for weight in weights.values())


def _among(option: str, values: Sequence[str], known: Sequence[str], known_as: str) -> None:
    if not values:
        raise UsageError(f"{option} names nothing.", f"{known_as} {', '.join(known)}.")
    if unknown := [value for value in values if value not in known]:
        raise UsageError(f"{option} knows no {', '.join(unknown)}.", f"{known_as} {', '.join(known)}.")
