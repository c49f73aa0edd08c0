"""Train SASRec on a catalog and register its item embeddings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from earec_behavior.spec import SPEC
from earec_behavior.table import default_name
from earec_core.catalog import Catalog, LeaveOneOut
from earec_core.config import validate
from earec_core.errors import UsageError
from earec_core.home import home
from earec_core.recommend import (
    EpochStats,
    RecommenderConfig,
    TrainedRecommender,
    evaluate,
    item_embeddings,
    train,
)
from earec_registry import Registry
from earec_registry.errors import RegistryError

_DISTRIBUTION = "earec-behavior"


@dataclass(frozen=True)
class Fitted:
    """Registered item embeddings.

    Attributes:
        id: the artifact's id; `name` points to it.
        run: the run's folder.
        metrics: HR@K and NDCG@K of the recommender itself, by `valid` and `test`.
        items: items with an embedding, and without one.
    """

    id: str
    name: str
    run: Path
    metrics: Mapping[str, Mapping[str, float]]
    items: Mapping[str, int]


def fit(
    catalog: Catalog,
    options: Mapping[str, Any],
    registry: Registry,
    *,
    name: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    show: Callable[[int, int, str], None] = lambda *_: None,
) -> Fitted:
    """Train SASRec on the training part and register the item embeddings.

    Validation targets choose the epoch, test targets are looked at for the metrics alone.

    Args:
        options: keys of `RecommenderConfig`.
        name: what to register them as; default `embeddings/<catalog>`.

    Raises:
        UsageError: an option is out of range.
        DataError: the catalog has no interactions to learn from.
    """
    config = validate(RecommenderConfig, options, "recommender's options")
    if config.dim % config.heads:
        raise UsageError(
            f"--heads {config.heads} does not divide --dim {config.dim}.", "Choose heads that divide it."
        )
    name = name or default_name(catalog.name)
    resolved = {
        "recommender": config.model_dump(mode="json"),
        "data": {"name": catalog.name, "digest": catalog.digest},
        "plugin": {"distribution": _DISTRIBUTION, "version": version(_DISTRIBUTION)},
        "earec": version("earec"),
    }
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
    run = home() / "runs" / f"behavior-{digest[:12]}"
    finished = _finished(run, registry, name)
    if finished is not None:
        note(f"Already fitted: {finished.id[:12]} (run {run.name}).")
        return finished
    run.mkdir(parents=True, exist_ok=True)
    _write_json(run / "config.json", resolved)
    split = catalog.leave_one_out()
    note(f"Fitting SASRec: {len(split.train)} users, {len(catalog)} items, run {run.name}.")

    def progress(stats: EpochStats) -> None:
        show(stats.epoch, config.epochs, f"loss {stats.loss:.3f}, NDCG@10 {stats.ndcg10:.4f}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = run / "checkpoint.safetensors"
    trained = train(split, len(catalog), config, progress=progress, checkpoint=checkpoint, device=device)
    metrics = _metrics(trained, split)
    # An item that no training sequence holds was only ever pushed away: nothing was learned about it.
    known = np.unique(split.train.items)
    items = {"embedded": len(known), "without_interactions": len(catalog) - len(known)}
    files = _export(run, item_embeddings(trained)[known], [catalog.items["item_id"][int(i)] for i in known])
    manifest = {
        "kind": "features",
        "modality": SPEC.name,
        "plugin": resolved["plugin"],
        "catalog": resolved["data"],
        "shapes": {"items": len(known), "d": config.dim},
        "method": "sasrec",
        "training": {
            "config": resolved["recommender"],
            "data": resolved["data"],
            "seed": config.seed,
            "epochs": len(trained.history),
            "kept_epoch": trained.best_epoch,
        },
        "metrics": metrics,
    }
    identity = registry.add(manifest, files, name=name, why=f"behavior fit on {catalog.name}")
    _write_json(run / "done.json", {"id": identity, "metrics": metrics, "items": items})
    for file in (checkpoint, *files.values()):
        file.unlink(missing_ok=True)
    return Fitted(identity, name, run, metrics, items)


def _metrics(trained: TrainedRecommender, split: LeaveOneOut) -> dict[str, dict[str, float]]:
    found = {}
    for part in ("valid", "test"):
        if len(split.eval_users):
            summary = evaluate(trained.model, split, part).summary()
            found[part] = {key: round(value, 6) for key, value in summary.items()}
    return found


def _export(run: Path, values: np.ndarray, ids: list[str]) -> dict[str, Path]:
    files = {name: run / name for name in ("embeddings.safetensors", "item_ids.json")}
    save_file({"embeddings": torch.from_numpy(values)}, files["embeddings.safetensors"])
    _write_json(files["item_ids.json"], ids)
    return files


def _finished(run: Path, registry: Registry, name: str) -> Fitted | None:
    try:
        done = json.loads((run / "done.json").read_text())
        registry.tag(done["id"], name, "latest", "fitted before")
        return Fitted(done["id"], name, run, done["metrics"], done["items"])
    except (OSError, ValueError, KeyError, RegistryError):
        # Not finished, or no longer whole in this registry: the run is done again.
        return None


def _write_json(file: Path, value: Any) -> None:
    temp = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temp.open("w") as handle:
            json.dump(value, handle, indent=1, ensure_ascii=False)
            handle.flush()
            os.fsync(handle.fileno())
        temp.replace(file)
    finally:
        temp.unlink(missing_ok=True)
