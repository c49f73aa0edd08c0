"""The page of a run of `earec explain`, from plain rows as its tables hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from earec_core.report.content import Example, Report, RougeRow, Says
from earec_core.report.figures import VARIANTS

Describe = Callable[[str, str], str]
"""What went in, from an item's id and a modality: text, or a `data:` address of an image."""


def rouge_rows(scores: Sequence[Mapping[str, Any]]) -> list[RougeRow]:
    """ROUGE-L of every source.

    Args:
        scores: a row per source: `source`, `items`, and for each variant measured `VARIANT`, `VARIANT_low`,
            `VARIANT_high`; the same of `difference`. What was not measured is missing, or None.
    """
    return [
        RougeRow(
            row["source"],
            row["items"],
            {name: _bounds(row, name) for name in VARIANTS if row.get(name) is not None},
            _bounds(row, "difference") if row.get("difference") is not None else None,
        )
        for row in scores
    ]


def _bounds(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def examples(texts: Sequence[Mapping[str, Any]], describe: Describe, cards: int = 6) -> list[Example]:
    """The items whose aligned texts are closest to their anchors, and as many from the middle.

    Args:
        texts: a row per text: `item_id`, `anchor`, `source`, `variant`, `text`, `rouge_l`.
        describe: asked of the sources that are modalities.
        cards: how many items.
    """
    aligned: dict[str, list[Mapping[str, Any]]] = {}
    for row in texts:
        if row["variant"] == "aligned":
            aligned.setdefault(row["item_id"], []).append(row)
    before = {(row["item_id"], row["source"]): row["text"] for row in texts if row["variant"] == "unaligned"}
    mean = {item: sum(row["rouge_l"] for row in rows) / len(rows) for item, rows in aligned.items()}
    ranked = sorted(aligned, key=lambda item: (mean[item], item), reverse=True)
    half = cards // 2
    return [
        Example(
            item,
            aligned[item][0]["anchor"],
            [
                Says(
                    row["source"],
                    "" if row["source"] == "all" else describe(item, row["source"]),
                    row["text"],
                    before.get((item, row["source"]), ""),
                    row["rouge_l"],
                )
                for row in aligned[item]
            ],
        )
        for item in dict.fromkeys(ranked[:half] + ranked[len(ranked) // 2 :][:half])
    ]


def explained(
    scores: Sequence[Mapping[str, Any]],
    texts: Sequence[Mapping[str, Any]],
    describe: Describe,
    *,
    model: str,
    catalog: str,
    split: str,
    command: str,
) -> Report:
    """The report of one run; see `rouge_rows` and `examples` for the rows."""
    return Report(
        title=f"What {model} says of {catalog}",
        subtitle="Texts generated from what is known of an item, scored against the item's anchor.",
        facts=[
            ("model", model),
            ("catalog", catalog),
            ("split", split),
            ("items scored", f"{len({row['item_id'] for row in texts}):,}"),
        ],
        examples=examples(texts, describe),
        rouge=rouge_rows(scores),
        rouge_commands=[command],
    )
