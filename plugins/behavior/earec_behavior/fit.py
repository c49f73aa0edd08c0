"""Train SASRec on a catalog and register its item embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from earec_behavior.spec import SPEC
from earec_behavior.table import default_name
from earec_core.artifacts import DataRecord, EmbeddingsManifest, save_table
from earec_core.artifacts.embeddings import DistributionRecord
from earec_core.artifacts.tables import TableShape
from earec_core.catalog import Catalog
from earec_core.config import RecommenderConfig
from earec_core.recommend.stage import Training, train_on
from earec_core.workspace import Workspace

_DISTRIBUTION = "earec-behavior"


@dataclass(frozen=True)
class Fitted:
    """Registered item embeddings.

    Attributes:
        id: the artifact's id; `name` points to it.
        training: of the recommender, with its metrics.
        items: items with an embedding, and without one.
    """

    id: str
    name: str
    training: Training
    items: Mapping[str, int]


def fit(
    workspace: Workspace,
    catalog: Catalog,
    config: RecommenderConfig,
    *,
    name: str | None = None,
    force: bool = False,
) -> Fitted:
    """Train SASRec on the training part and register the item embeddings.

    Validation targets choose the epoch, test targets are looked at for the metrics alone. The run is that of
    `earec recommend train --ids` with the same settings: whichever comes second finds it finished.

    Args:
        name: what to register them as; default `embeddings/<catalog>`.
        force: train anew, whatever this run has come to before.

    Raises:
        DataError: the catalog has no interactions to learn from.
    """
    name = name or default_name(catalog.name)
    workspace.registry.check_name(name)
    users = catalog.manifest["counts"]["users"]
    workspace.note(f"Fitting SASRec: {users} users, {len(catalog)} items.")
    training = train_on(workspace, catalog, config, force=force)
    recommender = training.recommender
    # An item that no training sequence holds was only ever pushed away: nothing was learned about it.
    known = np.unique(catalog.leave_one_out().train.items)
    manifest = EmbeddingsManifest(
        modality=SPEC.name,
        plugin=DistributionRecord(distribution=_DISTRIBUTION, version=version(_DISTRIBUTION)),
        data=DataRecord(name=catalog.name, digest=catalog.digest),
        shapes=TableShape(items=len(known), d=config.dim),
        method=recommender.name,
        training={
            "config": config.model_dump(mode="json"),
            "seed": config.seed,
            "epochs": len(recommender.history),
            "kept_epoch": recommender.best_epoch,
        },
        metrics=training.metrics,
    )
    identity = save_table(
        workspace.registry,
        manifest,
        recommender.item_embeddings()[known],
        [catalog.items["item_id"][int(row)] for row in known],
        name=name,
        why=f"behavior fit on {catalog.name}",
    )
    items = {"embedded": len(known), "without_interactions": len(catalog) - len(known)}
    return Fitted(identity, name, training, items)
