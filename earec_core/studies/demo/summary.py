"""The demo's report, out of its stages' results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from earec_core.aligned.build import context
from earec_core.aligned.stored import open_model
from earec_core.catalog import Catalog
from earec_core.modality import Modality, create
from earec_core.recommend.compare import compare
from earec_core.recommend.evaluate import histories
from earec_core.recommend.snapshots import open_retriever
from earec_core.report import Report
from earec_core.report.content import Composition, Curve, Recommendation, StageRow, Suggestion
from earec_core.report.explained import Describe, examples, rouge_rows
from earec_core.studies.demo.run import Done, recipe
from earec_core.workspace import Workspace
from earec_registry import Registry

_USERS, _SHOWN = 3, 8


def report(folder: Path, workspace: Workspace, done: Sequence[Done]) -> Report:
    """The report of a finished demo.

    Args:
        folder: the demo's folder.
        workspace: over the demo's registry.
        done: every stage with its result.
    """
    texts = recipe()["report"]
    by_name = {outcome.stage.name: outcome for outcome in done}
    places = {"catalog": "movielens-100k", "pictures": "openmoji"}
    catalogs = {name: Catalog.open(folder / "data" / place) for name, place in places.items()}
    explained = [by_name[f"explain-{name}"] for name in catalogs]
    composed = by_name["compose"]
    counts = by_name["catalog"].result["counts"]
    recommenders = texts["recommenders"]
    recommended = {
        name: by_name[f"recommend-{name}"] for name in recommenders if f"recommend-{name}" in by_name
    }
    less = _paired(workspace.registry, catalogs["catalog"], list(recommended))
    return Report(
        title=texts["title"],
        subtitle=texts["subtitle"],
        facts=[
            *((name, f"{counts[name]:,}") for name in ("items", "users", "interactions")),
            ("minutes in all", f"{_seconds(done) / 60:.1f}"),
        ],
        examples=[
            example
            for name, catalog in catalogs.items()
            for example in examples(
                pl.read_parquet(folder / "texts" / f"{name}.parquet").to_dicts(), _inputs(catalog, workspace)
            )
        ],
        rouge=rouge_rows([row for outcome in explained for row in outcome.result]),
        rouge_commands=[outcome.stage.line for outcome in explained],
        curves=[_curve(outcome) for outcome in done if outcome.stage.name.startswith("align-")],
        composition=Composition(
            **{key: composed.result[key] for key in ("weights", "method", "cosines", "norms")},
            command=composed.stage.line,
        ),
        recommendations=[
            Recommendation(name, recommenders[name], outcome.result["test"], outcome.stage.line, less[name])
            for name, outcome in recommended.items()
        ],
        suggestions=_suggestions(catalogs["catalog"], workspace.registry, list(recommended)),
        stages=[
            StageRow(outcome.stage.title, outcome.stage.line, outcome.seconds, not outcome.repeated)
            for outcome in done
        ],
        notes=texts["notes"],
    )


def _seconds(done: Sequence[Done]) -> float:
    """How long the stages took together; while two ran beside each other, it counts once."""
    seconds, end = 0.0, -math.inf
    for outcome in sorted(done, key=lambda outcome: outcome.began):
        until = outcome.began + outcome.seconds
        seconds += max(0.0, until - max(outcome.began, end))
        end = max(end, until)
    return seconds


def _paired(
    registry: Registry, catalog: Catalog, names: Sequence[str]
) -> dict[str, dict[str, tuple[float, float, float, float]]]:
    """Of each recommender, by metric: the difference to the first, its interval, p."""
    if not names:
        return {}
    rows = compare(registry, catalog, {name: [f"recommender/{name}"] for name in names}, to=names[0])
    ends = ("less", "low", "high", "p")
    return {
        row["model"]: {
            metric: tuple(row[f"{metric}_{end}"] for end in ends)
            for metric in ("hr@10", "ndcg@10")
            if f"{metric}_less" in row
        }
        for row in rows
    }


def _curve(aligned: Done) -> Curve:
    result = json.loads((Path(aligned.result["run"]) / "result.json").read_text())
    history: list[dict[str, float]] = result["history"]

    def series(key: str) -> list[tuple[float, float]]:
        return [(point["step"], point[key]) for point in history if key in point]

    speeds = [value for _, value in series("tokens_per_s")]
    return Curve(
        modality=aligned.stage.command[aligned.stage.command.index("--modality") + 1],
        loss=series("loss"),
        valid=series("valid_loss"),
        rouge=series("valid_rouge_l"),
        items=result["counts"]["train"],
        minutes=result["minutes"],
        tokens_per_s=median(speeds) if speeds else 0.0,
        command=aligned.stage.line,
    )


def _inputs(catalog: Catalog, workspace: Workspace) -> Describe:
    """What the composite reads of an item, by modality."""
    model = open_model(workspace.registry, "composite")
    items = {item.id: item for item in catalog.all_items()}

    @cache
    def modality(name: str) -> Modality[Any]:
        return create(name, model.manifest.modalities[name].config, context(workspace, catalog))

    return lambda item_id, name: modality(name).describe(items[item_id])


def _suggestions(catalog: Catalog, registry: Registry, models: Sequence[str]) -> list[Suggestion]:
    """What each recommender offers to the first users for whom one of them finds the item chosen next."""
    split = catalog.leave_one_out()
    titles = [item.title or item.id for item in catalog.all_items()]
    opened = {name: open_retriever(registry, f"recommender/{name}", catalog) for name in models}
    users = split.eval_users[:200]
    known = histories(split, "test", users)
    lists = {
        name: [ranking.rows for ranking in retriever.recommend(known, _SHOWN, exclude_seen=False)]
        for name, retriever in opened.items()
    }
    served = [any(split.test[user] in lists[name][i] for name in models) for i, user in enumerate(users)]
    first = np.flatnonzero(served)[:_USERS]
    return [
        Suggestion(
            user=str(split.train.users[users[i]]),
            history=[titles[row] for row in known[i][-5:].tolist()],
            target=titles[split.test[users[i]]],
            lists={name: [titles[row] for row in rows[i].tolist()] for name, rows in lists.items()},
        )
        for i in first.tolist()
    ]
