"""The demo's report, out of its stages' results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from earec_core.aligned.stored import StoredModel
from earec_core.catalog import Catalog
from earec_core.home import home, registry_root
from earec_core.modality import Context, create
from earec_core.recommend.evaluate import histories
from earec_core.recommend.index import topk
from earec_core.recommend.stage import open_recommender
from earec_core.report import (
    Composition,
    Curve,
    Example,
    Recommendation,
    Report,
    RougeRow,
    Says,
    StageRow,
    Suggestion,
)
from earec_core.studies.demo.run import Done
from earec_registry import Registry

_CARDS, _USERS, _SHOWN = 6, 3, 8

_WHAT = {
    "ids": "SASRec: one trained vector per item id, nothing of what the item is",
    "unaligned": "frozen vectors of the language model as it came",
    "composite": "frozen vectors of the composed model",
}

_NOTES = (
    "The language model is SmolLM2-135M-Instruct (Apache-2.0). The paper's is fifty times larger and was "
    "trained on four GPUs; each alignment here took about a minute on a processor.",
    "The catalog is MovieLens-100K, read from the recbole package: titles, genres, years and 100,000 ratings. "
    "It has no descriptions, so the text modality reads genres and year, and repeating the genres of the anchor "
    "is easy for it.",
    "Nothing here is picked by hand: the cards show the items whose texts came closest to their anchors, and as "
    "many from the middle; the users are the first that some recommender serves well.",
    "The items shown and scored are held back: no alignment was trained on them.",
    "MovieLens-100K has no pictures. Vision is aligned on drawings of OpenMoji (CC BY-SA 4.0) with their "
    "names and categories; that says nothing of movies. Its own adapter names the pictures here: the composite, "
    "where vision weighs 0.1, answers a drawing with a movie.",
)


def report(folder: Path, done: Sequence[Done]) -> Report:
    """The report of a finished demo.

    Args:
        folder: the demo's folder.
        done: every stage with its result.
    """
    by_name = {one.stage.name: one for one in done}
    registry = Registry.open(registry_root())
    catalogs = {
        name: Catalog.open(folder / "data" / place)
        for name, place in (("catalog", "movielens-100k"), ("pictures", "openmoji"))
    }
    explained = {name: by_name[f"explain-{name}"] for name in catalogs}
    counts = by_name["catalog"].result["counts"]
    recommended = {name: by_name[f"recommend-{name}"] for name in _WHAT if f"recommend-{name}" in by_name}
    minutes = sum(one.seconds for one in done) / 60
    return Report(
        title="What a small language model learned of movies",
        subtitle="Three modalities of items, each aligned on its own to a readable anchor, composed by weight "
        "into one model, and put to work as a recommender.",
        facts=[
            ("items", f"{counts['items']:,}"),
            ("users", f"{counts['users']:,}"),
            ("interactions", f"{counts['interactions']:,}"),
            ("minutes in all", f"{minutes:.1f}"),
        ],
        examples=[
            example
            for name, catalog in catalogs.items()
            for example in _examples(folder / "texts" / f"{name}.parquet", catalog, registry)
        ],
        rouge=[_rouge(row) for one in explained.values() for row in one.result],
        rouge_commands=[one.stage.line for one in explained.values()],
        curves=[_curve(one) for one in done if one.stage.name.startswith("align-")],
        composition=_composition(by_name["compose"]),
        recommendations=[
            Recommendation(name, _WHAT[name], one.result["test"], one.stage.line)
            for name, one in recommended.items()
        ],
        suggestions=_suggestions(catalogs["catalog"], registry, list(recommended)),
        stages=[StageRow(one.stage.title, one.stage.line, one.seconds, not one.repeated) for one in done],
        notes=_NOTES,
    )


def _curve(one: Done) -> Curve:
    result = json.loads((Path(one.result["run"]) / "result.json").read_text())
    history: list[dict[str, float]] = result["history"]

    def series(key: str) -> list[tuple[float, float]]:
        return [(point["step"], point[key]) for point in history if key in point]

    speeds = [value for _, value in series("tokens_per_s")]
    return Curve(
        modality=one.stage.command[one.stage.command.index("--modality") + 1],
        loss=series("loss"),
        valid=series("valid_loss"),
        rouge=series("valid_rouge_l"),
        items=result["counts"]["train"],
        minutes=result["minutes"],
        tokens_per_s=median(speeds) if speeds else 0.0,
        command=one.stage.line,
    )


def _rouge(row: Mapping[str, Any]) -> RougeRow:
    variants = {
        name: (row[name], row[f"{name}_low"], row[f"{name}_high"])
        for name in ("aligned", "shuffled", "unaligned")
        if name in row
    }
    return RougeRow(row["source"], row["items"], variants)


def _composition(one: Done) -> Composition:
    result = one.result
    return Composition(
        result["weights"], result["method"], result["cosines"], result["norms"], one.stage.line
    )


def _examples(texts: Path, catalog: Catalog, registry: Registry) -> list[Example]:
    """The items whose aligned texts are closest to their anchors, and as many from the middle."""
    table = pl.read_parquet(texts)
    model = StoredModel.open(registry, "composite")
    context = Context(catalog.name, registry.root, home())
    modalities = {
        name: create(name, model.modalities[name]["config"], context)
        for name in table["source"].unique()
        if name in model.modalities
    }
    items = {item.id: item for item in catalog.all_items()}
    aligned = table.filter(pl.col("variant") == "aligned")
    ranked = (
        aligned.group_by("item_id").agg(pl.col("rouge_l").mean()).sort("rouge_l", "item_id", descending=True)
    )
    ids = ranked["item_id"].to_list()
    half = _CARDS // 2
    chosen = list(dict.fromkeys([*ids[:half], *ids[len(ids) // 2 :][:half]]))
    found = []
    for item_id in chosen:
        rows = {(r["source"], r["variant"]): r for r in table.filter(pl.col("item_id") == item_id).to_dicts()}
        says = [
            Says(
                source,
                modalities[source].describe(items[item_id]) if source in modalities else "",
                row["text"],
                rows.get((source, "unaligned"), {}).get("text", ""),
                row["rouge_l"],
            )
            for (source, variant), row in rows.items()
            if variant == "aligned"
        ]
        found.append(Example(item_id, next(iter(rows.values()))["anchor"], says))
    return found


def _suggestions(catalog: Catalog, registry: Registry, models: Sequence[str]) -> list[Suggestion]:
    """What each recommender offers to a few users, some of whom the last one serves well."""
    split = catalog.leave_one_out()
    titles = [item.title or item.id for item in catalog.all_items()]
    opened = {name: open_recommender(registry, f"recommender/{name}", catalog) for name in models}
    users = split.eval_users[:200]
    known = histories(split, "test", users)
    lists = {name: topk(one.model, known, _SHOWN, exclude_seen=False)[0] for name, one in opened.items()}
    served = [any(split.test[user] in lists[name][i] for name in models) for i, user in enumerate(users)]
    order = np.argsort(~np.array(served), kind="stable")[:_USERS]
    return [
        Suggestion(
            user=str(split.train.users[users[i]]),
            history=[titles[row] for row in known[i][-5:].tolist()],
            target=titles[split.test[users[i]]],
            lists={name: [titles[row] for row in rows[i].tolist()] for name, rows in lists.items()},
        )
        for i in order.tolist()
    ]
