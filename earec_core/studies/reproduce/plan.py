"""The rows of the paper's tables, and the controls beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Literal

from earec_core.compose import method_names
from earec_core.errors import UsageError

Kind = Literal["composite", "unaligned", "single", "mean", "concatenation", "ids", "baseline"]


@dataclass(frozen=True)
class Row:
    """One row: what its item vectors are made of.

    Attributes:
        name: unique in the table.
        kind: a composite, or which control.
        modalities: what is shown to the model.
        method: of the composition.
        weights: lambda of each modality, sum 1; of composites alone.
        paper: the paper's figures for this row, none for a control.
        side: what the row is in a comparison.
        model: of `earec recommend train`; None: by whether there are vectors.
        ids: whether trained embeddings of ids are part of it.
        shares: the row whose composite and item vectors it has, too; None: it has its own.
        words: of a baseline, the modalities that an encoder of text reads.
        features: of a baseline, the modalities whose own encoder's output is read.
    """

    name: str
    kind: Kind
    modalities: tuple[str, ...] = ()
    method: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    side: Literal["control", "baseline", "ours"] = "control"
    model: str | None = None
    ids: bool = False
    shares: str | None = None
    words: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """What a table is made for.

    Attributes:
        content: what the paper's table says.
        given: the modalities that there are.
        methods: of composition.
        weights: of the modalities given, sum 1; None: the table's.
        reference: the row to compare with, if one is asked for.
    """

    content: Mapping[str, Any]
    given: tuple[str, ...]
    methods: tuple[str, ...]
    weights: Mapping[str, float] | None
    reference: str | None


def read_table(table: int) -> dict[str, Any]:
    """What the paper's table says.

    Raises:
        UsageError: it is no table that can be reproduced.
    """
    if table not in _LAYOUTS:
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
        weights = shares(row["weights"], modalities)
        distinct.setdefault(label(weights), (weights, row["paper"]))
    return list(distinct.values())


def shares(weights: Mapping[str, float], modalities: Sequence[str]) -> dict[str, float]:
    """The weights of some modalities, divided by their sum."""
    total = sum(weights[m] for m in modalities)
    return {m: weights[m] / total for m in modalities}


def plan(
    table: int,
    *,
    modalities: Sequence[str] | None = None,
    adapters: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    reference: str | None = None,
    only: Sequence[str] | None = None,
) -> tuple[list[Row], str]:
    """The rows to measure.

    Args:
        table: the paper's table.
        modalities: those that there are adapters of; default: the paper's. Any other's weight has to be given.
        adapters: modalities that a certain adapter is given for.
        methods: of composition; default: the table's.
        weights: of the composition, of each modality; default: the table's.
        reference: the row that the others are compared with; default: the composite of all at the table's first
            weighting.
        only: names of rows; default: all. The reference is always among them.

    Returns:
        The rows, and the reference's name.

    Raises:
        UsageError: an unknown table, modality, method or row; weights where the table is about weights.
    """
    content = read_table(table)
    given = _given(table, content, modalities, weights)
    if adapters:
        _among("--adapter", adapters, given, "The modalities are")
    methods = tuple(dict.fromkeys(methods or content["methods"]))
    _among("--methods", methods, method_names(), "The methods are")
    if "row" not in content and len(methods) > 1:
        raise UsageError(f"Table {table} composes by one method.", "Give one in --methods.")
    if weights is not None:
        weights = _weights(weights, given, content)
    rows, first = _LAYOUTS[table](_Asked(content, given, methods, weights, reference))
    names = [row.name for row in rows]
    chosen = reference or first
    _among("--reference", [chosen], names, "The rows are")
    if only is not None:
        _among("--only", only, names, "The rows are")
        rows = [row for row in rows if row.name in only or row.name == chosen]
    return rows, chosen


def _given(
    table: int,
    content: Mapping[str, Any],
    modalities: Sequence[str] | None,
    weights: Mapping[str, float] | None,
) -> tuple[str, ...]:
    """The modalities asked for: the paper's in its order, then any other."""
    papers = content["modalities"]
    if modalities is None:
        return tuple(papers)
    if "row" in content:
        _among("--modalities", modalities, papers, f"Table {table} has")
    if not modalities:
        raise UsageError("--modalities names nothing.", f"The paper's are {', '.join(papers)}.")
    others = [m for m in dict.fromkeys(modalities) if m not in papers]
    if others and weights is None:
        raise UsageError(
            f"The paper has no weight of {', '.join(others)}.",
            f"Give the weights of all, or leave it out: --weights {'=..,'.join(modalities)}=..",
        )
    return (*(m for m in papers if m in modalities), *others)


def _weighted(asked: _Asked) -> tuple[list[Row], str]:
    """Table 4: the paper's weightings by every method, and what stands beside them."""
    weighted = weightings(asked.content["row"], asked.given)
    rows = [
        Row(f"{method}-{label(weights)}", "composite", asked.given, method, weights, paper)
        for method in dict.fromkeys([*asked.methods, "delta"])
        for weights, paper in weighted
        if method in asked.methods or (asked.reference is None and weights is weighted[0][0])
    ]
    rows += _unaligned(asked)
    rows += [Row(m, "single", (m,)) for m in asked.given]
    if len(asked.given) > 1:
        rows += [Row("mean", "mean", asked.given), Row("concatenation", "concatenation", asked.given)]
    return [*rows, Row("ids", "ids")], f"delta-{label(weighted[0][0])}"


def _reduced(asked: _Asked) -> tuple[list[Row], str]:
    """Table 3: the composite of all, without each modality, without all."""
    weights = asked.weights or shares(asked.content["weights"], asked.given)
    paper, method = asked.content["paper"], asked.methods[0]
    parts = {"all": asked.given}
    if len(asked.given) > 1:
        parts |= {f"without-{left}": tuple(m for m in asked.given if m != left) for left in asked.given}
    rows = [
        Row(name, "composite", shown, method, shares(weights, shown), paper.get(name, {}))
        if len(shown) > 1
        else Row(name, "single", shown, paper=paper.get(name, {}))
        for name, shown in parts.items()
    ]
    return [*rows, *_unaligned(asked)], "all"


def _compared(asked: _Asked) -> tuple[list[Row], str]:
    """Table 2: baselines, and composites of one, two and all modalities; the last with ids, too."""
    paper = asked.content["paper"]
    rows = []
    for listed in asked.content["baseline"]:
        read = {"words": tuple(listed.get("words", ())), "features": tuple(listed.get("features", ()))}
        shown = (*read["words"], *read["features"])
        if set(shown) <= set(asked.given):
            name, ids = listed["name"], listed.get("ids", False)
            more = {"paper": paper.get(name, {}), "model": listed["model"], "ids": ids, **read}
            rows.append(Row(name, "baseline", shown, side="baseline", **more))
    given = asked.given
    pairs = [(given[0], other) for other in given[1:]] if len(given) > 2 else []
    weights = asked.weights or shares(asked.content["weights"], given)
    for shown in dict.fromkeys([*((m,) for m in given), *pairs, given]):
        name = f"earec-{'-'.join(shown)}"
        row = Row(name, "single", shown, paper=paper.get(name, {}), side="ours")
        if len(shown) > 1:
            row = replace(row, kind="composite", method=asked.methods[0], weights=shares(weights, shown))
        rows.append(row)
    return [*rows, replace(row, name=f"{name}-ids", ids=True, shares=name, paper={})], "sasrec"


def _unaligned(asked: _Asked) -> list[Row]:
    """The un-aligned backbone, shown what the table says of the modalities that there are."""
    rows: dict[str, Row] = {}
    for listed in asked.content["unaligned"]:
        everything = listed == asked.content["modalities"]
        shown = asked.given if everything else tuple(m for m in listed if m in asked.given)
        name = "unaligned" if shown == asked.given else f"unaligned-{'-'.join(shown)}"
        if shown:
            paper = asked.content.get("paper", {}).get(name, {})
            rows.setdefault(name, Row(name, "unaligned", shown, paper=paper))
    return list(rows.values())


_LAYOUTS: Mapping[int, Callable[[_Asked], tuple[list[Row], str]]] = {
    2: _compared,
    3: _reduced,
    4: _weighted,
}
TABLES = tuple(_LAYOUTS)
"""The paper's tables that are measured with adapters."""


def label(weights: Mapping[str, float]) -> str:
    """Weights in a name: percent by percent, such as 15-42.5-42.5."""
    return "-".join(f"{round(100 * weight, 1):g}" for weight in weights.values())


def _weights(
    weights: Mapping[str, float], given: Sequence[str], content: Mapping[str, Any]
) -> dict[str, float]:
    if "weights" not in content:
        raise UsageError("Table 4 has weights of its own.", "Leave --weights out.")
    if set(weights) != set(given) or min(weights.values()) <= 0:
        raise UsageError(
            f"--weights gives {', '.join(weights)}, but the modalities are {', '.join(given)}.",
            "Give each of them a weight above 0.",
        )
    return shares(weights, given)


def _among(option: str, values: Sequence[str], known: Sequence[str], known_as: str) -> None:
    if not values:
        raise UsageError(f"{option} names nothing.", f"{known_as} {', '.join(known)}.")
    if unknown := [value for value in values if value not in known]:
        raise UsageError(f"{option} knows no {', '.join(unknown)}.", f"{known_as} {', '.join(known)}.")
