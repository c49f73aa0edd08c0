"""`recommend train|evaluate|topk`: registered recommenders over a catalog."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.numpy import save_file

from earec_core.artifacts import DataRecord, FitRecord, ItemVectors, RecommenderManifest, open_as, save
from earec_core.artifacts.recommender import RANKS
from earec_core.artifacts.tables import IDS
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.errors import UsageError
from earec_core.metrics.ranking import Metrics
from earec_core.recommend.evaluate import PARTS, Part, evaluate
from earec_core.recommend.models import choose_recommender
from earec_core.recommend.models.base import RecommenderModel
from earec_core.recommend.texts import ItemTexts
from earec_core.recommend.train import side_by_side, train, widths
from earec_core.recommend.trained import EpochStats, TrainedRecommender
from earec_core.recommend.transfer import Source
from earec_core.workspace import Run, Workspace
from earec_registry import Registry


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        recommender: at its best validation epoch.
        metrics: by `valid` and `test`, see `Metrics.summary`; none where no user has targets.
        run: its checkpoint stays, so that the same training is never done twice.
    """

    recommender: TrainedRecommender
    metrics: Mapping[str, Mapping[str, float]]
    run: Run


@dataclass(frozen=True)
class RegisteredRecommender:
    """A training whose recommender is in the registry as `id`; `name` points to it."""

    id: str
    name: str
    training: Training

    def as_json(self) -> dict[str, Any]:
        """`id`, `name`, `run`, epochs, and the metrics by part."""
        recommender = self.training.recommender
        return {
            "id": self.id,
            "name": self.name,
            "run": str(self.training.run.folder),
            "epochs": len(recommender.history),
            "best_epoch": recommender.best_epoch,
            **self.training.metrics,
        }


def train_on(
    workspace: Workspace,
    catalog: Catalog,
    config: RecommenderConfig,
    *,
    model: RecommenderModel | None = None,
    vectors: Sequence[ItemVectors] = (),
    texts: ItemTexts | None = None,
    source: Source | None = None,
    force: bool = False,
) -> Training:
    """Train on a catalog; a killed run goes on from its last epoch.

    Args:
        model: which; default: see `choose_recommender`.
        vectors: frozen item vectors, for a model that needs them; several stand side by side.
        texts: of the items, for a model that reads their words.
        source: the recommender to start from.
        force: begin anew, whatever this run has come to before.
    """
    split = catalog.leave_one_out()
    model = model or choose_recommender(None, vectors=bool(vectors))
    run = workspace.run("recommend", _key(model, catalog, config, vectors, texts, source)).own()
    if force:
        run.forget()
    run.start()

    def progress(stats: EpochStats) -> None:
        figures = {"loss": stats.loss, "valid_ndcg@10": stats.ndcg10, "valid_hr@10": stats.hr10}
        run.step(stats.epoch, figures)
        text = f"loss {stats.loss:.3f}, valid NDCG@10 {stats.ndcg10:.4f}"
        workspace.progress(stats.epoch, config.epochs, text)

    trained = train(
        model,
        split,
        len(catalog),
        config,
        vectors=side_by_side(vectors) if vectors else None,
        widths=widths(vectors),
        texts=texts,
        start=source.tensors if source else None,
        progress=progress,
        checkpoint=run.checkpoint,
        resumed=lambda epochs: workspace.note(f"Resuming at epoch {epochs + 1} (run {run.name})."),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    parts = PARTS if len(split.eval_users) else ()
    metrics = {str(part): evaluate(trained.model, split, part).summary() for part in parts}
    epochs = len(trained.history)
    run.finish({"epochs": epochs, "best_epoch": trained.best_epoch, **metrics}, step=epochs)
    return Training(trained, metrics, run)


def _key(
    model: RecommenderModel,
    catalog: Catalog,
    config: RecommenderConfig,
    vectors: Sequence[ItemVectors],
    texts: ItemTexts | None,
    source: Source | None,
) -> dict[str, Any]:
    """Everything that the result of a training depends on."""
    ids = [one.id for one in vectors]
    return {
        "model": model.name,
        "recommender": config.model_dump(mode="json"),
        "data": catalog.digest,
        "vectors": ids[0] if len(ids) == 1 else ids or None,
        "source": source.id if source else None,
        **({"texts": texts.identity()} if texts else {}),
    }


def train_registered(
    workspace: Workspace,
    catalog: Catalog,
    config: RecommenderConfig,
    *,
    name: str | None = None,
    vectors: Sequence[str] = (),
    model: str | None = None,
    start: str | None = None,
    words: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    force: bool = False,
) -> RegisteredRecommender:
    """Train a recommender, evaluate it and register it with the ranks of every user's targets.

    Args:
        name: what to register it as; default `recommender/<catalog>`.
        vectors: references to item vectors, for a model that needs them; several stand side by side.
        model: its name in the table of models; default: the source's, else see `choose_recommender`.
        start: a reference to a recommender, the source, that this one starts from; what the model is made of is
            then as it is there.
        words: modalities whose words a model reads that needs them.
        settings: each plugin's configuration by modality.
        force: train anew, whatever this run has come to before.

    Raises:
        UsageError: see `choose_recommender`, `Source` and `ItemTexts.open`.
    """
    name = name or f"recommender/{catalog.name}"
    workspace.registry.check_name(name)
    source = Source.open(workspace.registry, start) if start else None
    model = model or (source.model if source else None)
    chosen = choose_recommender(model, vectors=bool(vectors), words=bool(words))
    items = [ItemVectors.open(workspace.registry, reference, catalog) for reference in vectors]
    if source:
        source.check(vectors, items)
    parents = tuple(dict.fromkeys([*(one.id for one in items), *([source.id] if source else [])]))
    workspace.registry.require(*parents)
    config = source.settings(config) if source else config
    texts = ItemTexts.open(workspace, catalog, config, words, settings) if words else None
    training = train_on(
        workspace,
        catalog,
        config,
        model=chosen,
        vectors=items,
        texts=texts,
        source=source,
        force=force,
    )
    identity = _register(workspace, catalog, training, chosen, parents, texts, name)
    return RegisteredRecommender(identity, name, training)


def _register(
    workspace: Workspace,
    catalog: Catalog,
    training: Training,
    model: RecommenderModel,
    parents: tuple[str, ...],
    texts: ItemTexts | None,
    name: str,
) -> str:
    """Store a trained recommender with the ranks of every user's test targets; gives its id."""
    recommender = training.recommender
    ranks = evaluate(recommender.model, catalog.leave_one_out(), "test")
    manifest = RecommenderManifest(
        model=model.name,
        data=DataRecord(name=catalog.name, digest=catalog.digest),
        parents=parents,
        training=FitRecord(config=recommender.model.config, epoch=recommender.best_epoch),
        metrics=training.metrics,
        **(texts.identity() if texts else {}),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        recommender.save(out)
        save_file({"users": ranks.users, "ranks": ranks.ranks}, out / RANKS)
        (out / IDS).write_text(json.dumps(catalog.items["item_id"].to_list()))
        files = {file.name: file for file in out.iterdir()}
        why = f"recommend train on {catalog.name}"
        return save(workspace.registry, manifest, files, name=name, why=why)


def _folder(registry: Registry, reference: str, catalog: Catalog) -> Path:
    stored = open_as(registry, reference, RecommenderManifest)
    data = stored.manifest.data
    if data.digest != catalog.digest:
        raise UsageError(
            f"The recommender {reference!r} was trained on {data.name!r}, not on this version of "
            f"{catalog.name!r}.",
            "Give the dataset it was trained on, or train again.",
        )
    return stored.folder


def evaluate_registered(
    registry: Registry,
    reference: str,
    catalog: Catalog,
    part: Part,
    *,
    exclude_seen: bool = False,
    top: int = 0,
) -> Metrics:
    """Evaluate a registered recommender on a catalog.

    Args:
        top: see `evaluate`.

    Raises:
        UsageError: it is of another kind, or was trained on another catalog or another version of this one.
    """
    trained = TrainedRecommender.load(_folder(registry, reference, catalog))
    return evaluate(trained.model, catalog.leave_one_out(), part, exclude_seen=exclude_seen, top=top)
