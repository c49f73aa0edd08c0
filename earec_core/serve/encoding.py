"""What encodes further items as stored vectors were encoded."""

from __future__ import annotations

from earec_core.aligned.readouts import READOUTS
from earec_core.aligned.stored import StoredModel
from earec_core.artifacts import VectorsManifest
from earec_core.catalog import Catalog
from earec_core.config import RunConfig
from earec_core.encode.stage import opened
from earec_core.encode.windows import Job
from earec_core.errors import UsageError
from earec_core.llm.backbone import Backbone
from earec_core.workspace import Workspace


def are_of(manifest: VectorsManifest, model: StoredModel) -> bool:
    """Whether a model made vectors, of some of its modalities or of all."""
    return model.id in manifest.parents[:1] and bool(manifest.modalities)


def encoding(
    workspace: Workspace,
    catalog: Catalog,
    model: StoredModel,
    manifest: VectorsManifest,
    config: RunConfig,
    backbone: Backbone,
) -> Job:
    """What encodes further items as the stored vectors of a manifest, which are the model's, were.

    Raises:
        UsageError: no readout gives such vectors.
        PluginError, IntegrityError: see `earec_core.aligned.stored.stored_model`.
    """
    settings = {
        name: {**values, **config.modalities.get(name, {})} for name, values in manifest.modalities.items()
    }
    encode = config.encode.model_copy(update={"readout": _readout(manifest), "layer": manifest.layer})
    config = config.model_copy(update={"encode": encode, "modalities": settings})
    names = list(manifest.modalities)
    return opened(workspace, catalog, model.id, config, names=names, backbone=backbone)


def _readout(manifest: VectorsManifest) -> str:
    """The setting that gives vectors of this manifest."""
    for name, readout in READOUTS.items():
        if readout.method == manifest.method:
            return name
    raise UsageError(
        f"No readout gives vectors of the method {manifest.method!r}.", "Encode again: earec encode."
    )
