"""`recommend train|evaluate|topk`: registered recommenders over a catalog."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import save_file

import earec_core
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig, read_section, validate
from earec_core.encode import ItemVectors
from earec_core.errors import UsageError
from earec_core.home import home
from earec_core.metrics.ranking import Metrics
from earec_core.recommend.evaluate import evaluate
from earec_core.recommend.models import RecommenderModel, choose_recommender
from earec_core.recommend.retriever import Retriever
from earec_core.recommend.train import train
from earec_core.recommend.trained import EpochStats, TrainedRecommender
from earec_core.types import Show
from earec_registry import Registry


def recommender_config(file: Path | None, flags: Mapping[str, Any]) -> RecommenderConfig:
    """The hyper-parameters: flags over the file's section `[recommender]` over the defaults.

    Raises:
        UsageError: an unknown key, or a value out of range.
    """
    values = read_section(
        file, "recommender", {key.removeprefix("recommender."): v for key, v in flags.items()}
    )
    return validate(RecommenderConfig, values, "recommender's configuration")


def train_resumable(
    catalog: Catalog,
    config: RecommenderConfig,
    *,
    model: RecommenderModel | None = None,
    vectors: ItemVectors | None = None,
    show: Show = lambda *_: None,
) -> tuple[TrainedRecommender, dict[str, dict[str, float]], Path]:
    """Train on a catalog; a killed run goes on from its last epoch.

    Args:
        model: which; default: see `choose_recommender`.
        vectors: frozen item vectors, for a model that needs them.

    Returns:
        The recommender, its metrics on `valid` and `test` (none where no user has targets), and the run's
        folder. Its checkpoint stays, so that the same training is never done twice.
    """
    split = catalog.leave_one_out()
    model = model or choose_recommender(None, vectors=vectors is not None)
    key = [
        model.name,
        config.model_dump(mode="json"),
        catalog.digest,
        vectors.id if vectors else None,
        earec_core.__version__,
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    run = home() / "runs" / f"recommend-{digest[:12]}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(key, indent=1))

    def progress(stats: EpochStats) -> None:
        show(stats.epoch, config.epochs, f"loss {stats.loss:.3f}, valid NDCG@10 {stats.ndcg10:.4f}")

    trained = train(
        model,
        split,
        len(catalog),
        config,
        vectors=torch.from_numpy(vectors.vectors) if vectors else None,
        progress=progress,
        checkpoint=run / "checkpoint.safetensors",
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    parts: tuple[Literal["valid", "test"], ...] = ("valid", "test")
    metrics: dict[str, dict[str, float]] = {
        part: evaluate(trained.model, split, part).summary() for part in parts if len(split.eval_users)
    }
    return trained, metrics, run


def train_registered(
    catalog: Catalog,
    vectors: str | None,
    config: RecommenderConfig,
    registry: Registry,
    *,
    name: str,
    model: str | None = None,
    show: Show = lambda *_: None,
) -> dict[str, Any]:
    """Train a recommender, evaluate it and register it with the ranks of every user's targets.

    Args:
        vectors: a reference to item vectors, for a model that needs them.
        model: its name in the table of models; default: see `choose_recommender`.

    Returns:
        `id`, `name`, and `valid` and `test` metrics (see `Metrics.summary`).

    Raises:
        UsageError: see `choose_recommender`.
    """
    registry.check_name(name)
    chosen = choose_recommender(model, vectors=bool(vectors))
    items = ItemVectors.open(registry, vectors, catalog) if vectors else None
    trained, metrics, run = train_resumable(catalog, config, model=chosen, vectors=items, show=show)
    split = catalog.leave_one_out()
    ranks = evaluate(trained.model, split, "test")
    manifest = {
        "kind": "recommender",
        "method": "vectors" if items else "ids",
        "data": {"name": catalog.name, "digest": catalog.digest},
        "parents": [items.id] if items else [],
        "training": {"config": config.model_dump(mode="json"), "epoch": trained.best_epoch},
        "metrics": metrics,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        trained.save(out)
        save_file({"users": ranks.users, "ranks": ranks.ranks}, out / "test_ranks.safetensors")
        files = {file.name: file for file in out.iterdir()}
        identity = registry.add(manifest, files, name=name, why=f"recommend train on {catalog.name}")
    epochs = len(trained.history)
    return {
        "id": identity,
        "name": name,
        "run": str(run),
        "epochs": epochs,
        "best_epoch": trained.best_epoch,
        **metrics,
    }


def open_recommender(registry: Registry, reference: str, catalog: Catalog) -> TrainedRecommender:
    """A registered recommender, checked against the catalog; see `_folder` for errors."""
    return TrainedRecommender.load(_folder(registry, reference, catalog))


def open_retriever(registry: Registry, reference: str, catalog: Catalog) -> Retriever:
    """The same with the index of its items, ready to recommend."""
    return Retriever.open(_folder(registry, reference, catalog), catalog.items["item_id"].to_list())


def _folder(registry: Registry, reference: str, catalog: Catalog) -> Path:
    """Where a registered recommender of this catalog lies.

    Raises:
        UsageError: it is of another kind or another catalog.
    """
    manifest = registry.manifest(reference)
    if manifest.kind != "recommender":
        raise UsageError(
            f"{reference!r} is a {manifest.kind}, not a recommender.", "Train one: earec recommend train"
        )
    if manifest.data["data"]["digest"] != catalog.digest:
        raise UsageError(
            f"The recommender {reference!r} was trained on {manifest.data['data']['name']!r}, not on this "
            f"version of {catalog.name!r}.",
            "Give the dataset it was trained on, or train again.",
        )
    return registry.materialize(reference)


def evaluate_registered(
    registry: Registry,
    reference: str,
    catalog: Catalog,
    which: Literal["valid", "test"],
    *,
    exclude_seen: bool = False,
) -> Metrics:
    """Evaluate a registered recommender on a catalog."""
    trained = open_recommender(registry, reference, catalog)
    return evaluate(trained.model, catalog.leave_one_out(), which, exclude_seen=exclude_seen)


def recommend_to(
    registry: Registry, reference: str, catalog: Catalog, user: str, k: int, *, exclude_seen: bool = True
) -> list[dict[str, Any]]:
    """The k best next items for a user, after their whole history.

    Raises:
        UsageError: the catalog has no such user.
    """
    retriever = open_retriever(registry, reference, catalog)
    sequences = catalog.sequences()
    matching = np.flatnonzero(sequences.users == user)
    if not len(matching):
        raise UsageError(
            f"The catalog {catalog.name!r} has no user {user!r}.", "Give an id of the source data."
        )
    history = torch.from_numpy(sequences.of(int(matching[0])).copy())
    (ranking,) = retriever.recommend([history], k, exclude_seen=exclude_seen)
    return [
        {"rank": rank, "item_id": item, "title": catalog.item(row).title, "score": score}
        for rank, (item, row, score) in enumerate(
            zip(ranking.ids, ranking.rows.tolist(), ranking.scores.tolist(), strict=True), start=1
        )
    ]
