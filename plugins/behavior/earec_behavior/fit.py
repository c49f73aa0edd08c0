"""Train SASRec on a catalog and register its item embeddings."""

from __future__ import annotations

import json
import tempfile
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
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig, validate
from earec_core.errors import UsageError
from earec_core.recommend.stage import train_resumable
from earec_registry import Registry

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

    Validation targets choose the epoch, test targets are looked at for the metrics alone. The run is that of
    `earec recommend train --ids` with the same settings: whichever comes second finds it finished.

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
    registry.check_name(name)
    note(f"Fitting SASRec: {catalog.manifest['counts']['users']} users, {len(catalog)} items.")
    trained, metrics, run = train_resumable(catalog, config, show=show)
    # An item that no training sequence holds was only ever pushed away: nothing was learned about it.
    known = np.unique(catalog.leave_one_out().train.items)
    items = {"embedded": len(known), "without_interactions": len(catalog) - len(known)}
    manifest = {
        "kind": "features",
        "modality": SPEC.name,
        "plugin": {"distribution": _DISTRIBUTION, "version": version(_DISTRIBUTION)},
        "catalog": {"name": catalog.name, "digest": catalog.digest},
        "shapes": {"items": len(known), "d": config.dim},
        "method": "sasrec",
        "training": {
            "config": config.model_dump(mode="json"),
            "seed": config.seed,
            "epochs": len(trained.history),
            "kept_epoch": trained.best_epoch,
        },
        "metrics": metrics,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {file: Path(folder) / file for file in ("embeddings.safetensors", "item_ids.json")}
        values = torch.from_numpy(trained.item_embeddings()[known])
        save_file({"embeddings": values}, files["embeddings.safetensors"])
        ids = [catalog.items["item_id"][int(row)] for row in known]
        files["item_ids.json"].write_text(json.dumps(ids, ensure_ascii=False))
        identity = registry.add(manifest, files, name=name, why=f"behavior fit on {catalog.name}")
    return Fitted(identity, name, run, metrics, items)
